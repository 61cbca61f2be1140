"""Text-to-text tasks: ``get`` one by name, iterate over its ``examples``, ``expand`` groups of names.

Its modules are imported when they are used: pretraining asks for no task, and ``python -m data.tasks`` imports the
package before it can prepare for an interrupt.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.tasks.mixtures import mixing_rates
    from data.tasks.registry.all import GROUPS, TASKS, examples, expand, get
    from data.tasks.sources.prepared import description
    from data.tasks.task import Example, Task

__all__ = ["GROUPS", "TASKS", "Example", "Task", "description", "examples", "expand", "get", "mixing_rates"]

_MODULES = {
    "mixtures": ("mixing_rates",),
    "registry.all": ("GROUPS", "TASKS", "examples", "expand", "get"),
    "sources.prepared": ("description",),
    "task": ("Example", "Task"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
