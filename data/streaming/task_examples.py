"""The examples of one split of a task as pairs of texts: of a task by its name, or of own files."""

import functools
import hashlib
from collections import Counter
from typing import Any

import data.tasks
from data.config import DataConfig
from data.sources.files import FileShards
from data.sources.retry import DataError, Retries
from data.sources.rows import BadRow, advise
from data.task_config import TaskFiles

Pair = tuple[str, str]
MIN_ROWS_OF_BAD_FRACTION = 1000
SETTING = "data.tasks"


class TaskExamples:
    """All pairs of a split, in a fixed order; read when they are first asked for, and not pickled.

    Args:
        name: of the task.
        split: such as ``train``.
        config: the ``data`` section.
        files: the entry of ``data.task_files`` with this name, and its number; None: a task of ``data.tasks``.
    """

    def __init__(self, name: str, split: str, config: DataConfig, files: tuple[int, TaskFiles] | None = None) -> None:
        self.name, self.split = name, split
        self.bad_rows: Counter[str] = Counter()
        self.retries = Retries(config.retries, config.retry_seconds)
        self._config, self._files = config, files

    @property
    def key(self) -> str:
        """``key = value`` of the setting that selected the task, for error messages."""
        if self._files is None:
            return f"{SETTING} = {self.name}"
        return f"data.task_files[{self._files[0]}] = {self.name}"

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The (inputs, targets).

        Raises:
            DataError: there is no such split, it cannot be read, or it has no example.
        """
        pairs = self._of_task() if self._files is None else self._of_files(*self._files)
        if not pairs:
            raise DataError(f"{self.key}: split {self.split} has no example")
        return pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read: a worker reads it itself."""
        return {key: value for key, value in vars(self).items() if key != "pairs"} | {"bad_rows": Counter()}

    def identify(self) -> list[str]:
        """Return what tells these examples from others, wherever they are read from."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            for text in pair:
                digest.update(text.encode() + b"\0")
        return [f"{len(self.pairs):,} examples of SHA-256 {digest.hexdigest()[:16]}"]

    def _of_task(self) -> list[Pair]:
        try:
            found = data.tasks.examples(self.name, self.split, self._config.task_folder)
            return [(example.inputs, example.targets) for example in found]
        except DataError as error:
            raise DataError(f"{self.key}: {error}") from None
        except OSError as error:
            raise DataError(f"{self.key}: {error.filename} cannot be read: {error.strerror}") from None

    def _of_files(self, number: int, files: TaskFiles) -> list[Pair]:
        """Read each column of the files; a row that is bad in one of them is skipped and counted."""
        word = "train_files" if self.split == "train" else "validation_files"
        setting, patterns = f"data.task_files[{number}].{word}", getattr(files, word)
        if patterns is None:
            raise DataError(f"data.task_files[{number}] = {files.name} has no validation_files: set them")
        columns = [
            FileShards.matching(
                setting,
                patterns,
                getattr(files, key),
                self.retries,
                self._config.remote_block_bytes,
                column_key=key,
            )
            for key in ("inputs_column", "targets_column")
        ]
        pairs, rows, missing = [], 0, Counter[str]()
        for shard in range(columns[0].num_shards):
            for texts in zip(*(column.rows(shard, 0) for column in columns), strict=True):
                rows += 1
                bad = [(at, text) for at, text in enumerate(texts) if isinstance(text, BadRow)]
                if bad:
                    self.bad_rows[bad[0][1].value] += 1
                    missing[("inputs_column", "targets_column")[bad[0][0]]] += 1
                else:
                    pairs.append((str(texts[0]), str(texts[1])))
        failed = rows - len(pairs) - self.bad_rows[BadRow.BLANK_LINE.value]
        if not pairs or failed > self._config.max_bad_fraction * max(rows, MIN_ROWS_OF_BAD_FRACTION):
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.bad_rows.items()) or "no rows"
            column = f"data.task_files[{number}].{max(missing, key=missing.__getitem__, default='inputs_column')}"
            advice = advise(self.bad_rows, column) or "write one JSON object with inputs and targets per line"
            raise DataError(
                f"{columns[0].key}: {len(pairs):,} of {rows:,} rows are examples ({kinds}; data.max_bad_fraction = "
                f"{self._config.max_bad_fraction}): {advice}"
            )
        return pairs


def open_tasks(config: DataConfig, split: str) -> list[TaskExamples]:
    """Return the tasks of the config: those of ``data.tasks``, groups replaced by their tasks, then own files.

    Raises:
        DataError: there is no task of a name, or two have the same.
    """
    try:
        names = data.tasks.expand(config.tasks)
    except DataError as error:
        raise DataError(f"{SETTING} = [{', '.join(config.tasks)}]: {error}") from None
    for number, files in enumerate(config.task_files):
        if files.name in names:
            raise DataError(f"data.task_files[{number}].name = {files.name}: {SETTING} has such a task: rename it")
    own = [TaskExamples(f.name, split, config, (number, f)) for number, f in enumerate(config.task_files)]
    return [TaskExamples(name, split, config) for name in names] + own
