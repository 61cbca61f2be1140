"""The interface of a source of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]

DEFAULT_FOLDER = Path("runs/data/tasks")


class RowSource(Protocol):
    """Splits of rows."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        ...

    @property
    def origin(self) -> str:
        """Where the rows come from, for people."""
        ...

    @property
    def license(self) -> str:
        """Licence of the rows."""
        ...

    def load(self, task: str, split: str, folder: str | Path | None) -> Sequence[Row]:
        """Return the rows of a split; see ``Task.load``."""
        ...
