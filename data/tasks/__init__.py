"""Text-to-text tasks: ``get`` one by name, iterate over its ``examples``, ``expand`` groups of names.

The registry, which knows every task, is imported when it is first asked for: pretraining asks for none.
"""

import importlib
from typing import TYPE_CHECKING, Any

from data.tasks.mixtures import mixing_rates
from data.tasks.sources.prepared import description
from data.tasks.task import Example, Task

if TYPE_CHECKING:
    from data.tasks.registry.all import GROUPS, TASKS, examples, expand, get

__all__ = ["GROUPS", "TASKS", "Example", "Task", "description", "examples", "expand", "get", "mixing_rates"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.registry.all"), name)
