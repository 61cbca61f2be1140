"""Rows of a data set of the Hugging Face Hub at a pinned revision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.sources.hub import import_datasets
from data.sources.retry import DataError, reason
from data.tasks.sources.base import Row
from data.tasks.sources.local import read_rows, split_file

TRAIN_VALIDATION_TEST = {"train": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class HubRows:
    """Splits of a data set on the Hub; ``datasets`` keeps a copy on disk and maps it into memory.

    Args:
        dataset: ``owner/name``.
        config: configuration; None for the only one.
        revision: git commit, 40 digits.
        license: as the data set's page states it.
        split_names: the Hub's split by this project's.
    """

    dataset: str
    config: str | None
    revision: str
    license: str
    split_names: Mapping[str, str] = field(default_factory=lambda: TRAIN_VALIDATION_TEST)

    @property
    def splits(self) -> tuple[str, ...]:
        """See ``RowSource``."""
        return tuple(self.split_names)

    @property
    def origin(self) -> str:
        """See ``RowSource``."""
        return f"{self.dataset} ({self.config or 'default'}) at {self.revision[:8]}, from the Hugging Face Hub"

    def load(self, task: str, split: str, folder: str | Path | None) -> Sequence[Row]:
        """See ``RowSource``.

        Raises:
            DataError: the Hub has no such data set or split, or cannot be reached.
        """
        file = split_file(task, split, folder)
        if file.is_file():
            return read_rows(file)
        where = f"task {task}: {self.dataset} ({self.config or 'default'}, {self.split_names[split]})"
        try:
            rows: Sequence[Row] = import_datasets().load_dataset(
                self.dataset, self.config, split=self.split_names[split], revision=self.revision
            )
        except (ValueError, FileNotFoundError) as error:
            raise DataError(f"{where} is not on the Hugging Face Hub at {self.revision} ({reason(error)})") from error
        except Exception as error:
            raise DataError(
                f"{where} cannot be had from the Hugging Face Hub: check the network and HF_TOKEN, or put its rows in "
                f"{file} ({reason(error)})"
            ) from error
        return rows
