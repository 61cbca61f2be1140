"""Text-to-text tasks: ``get`` one by name, iterate over its ``examples``, ``expand`` groups of names."""

from data.tasks.mixtures import mixing_rates
from data.tasks.registry.all import GROUPS, TASKS, examples, expand, get
from data.tasks.sources.prepared import description
from data.tasks.task import Example, Task

__all__ = ["GROUPS", "TASKS", "Example", "Task", "description", "examples", "expand", "get", "mixing_rates"]
