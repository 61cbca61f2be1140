"""Writes rows of metrics to ``metrics.jsonl``, examples to ``examples.jsonl``, and both to TensorBoard."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from common.files import write_atomically
from common.logs import get_logger
from common.strict_json import finite_or_null, to_json
from training.monitoring.appending import GrowingFile
from training.monitoring.columns import CHECKPOINT, ERROR, SPLIT, STEP, TIME, TRAIN, VALIDATION
from training.monitoring.standing import row_of, standing_rows
from training.monitoring.tensorboard.board import Board
from training.run.folder import RunFolder

logger = get_logger(__name__)


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and shows them in TensorBoard on rank 0; elsewhere it does nothing.

    A full disk ends no run here: rows wait in memory until there is room.

    Args:
        folder: of the run.
        enabled: whether this is rank 0.
        resume_step: of the checkpoint from which the run resumes. None: a new run, or one that begins again.
        resume_bytes: length of the file when that checkpoint was begun. Later rows belong to steps that the resumed run
            makes again: they are removed, but for the row of the checkpoint itself.
        hyperparameters: of TensorBoard's HParams page.
        pictures: whether TensorBoard shows pictures of routing.
        monitor: DeepSpeed's, which passes numbers of training and validation on to W&B, Comet or CSV files where its
            configuration asks for it; None: nothing is passed on.
        batch_size: sequences per step. DeepSpeed's monitors count sequences, where TensorBoard counts steps.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        enabled: bool,
        resume_step: int | None = None,
        resume_bytes: int = 0,
        hyperparameters: Mapping[str, bool | float | str] | None = None,
        pictures: bool = True,
        monitor: Any = None,
        batch_size: int = 1,
    ):
        self.path, self.enabled = folder.metrics_file, enabled
        self.examples_path = folder.examples_file
        self.monitor, self.batch_size = monitor, batch_size
        if not enabled:
            return
        if self.path.exists():
            self._truncate(resume_bytes, resume_step)
        self.file = GrowingFile(self.path)
        self.board = Board(folder.tensorboard, hyperparameters or {}, pictures=pictures)
        self._show_what_stands()
        self.examples = GrowingFile(self.examples_path)

    def write(self, row: dict[str, Any]) -> None:
        """Write one JSON object on a line of its own; TensorBoard shows its numbers and texts under the split's name.

        Args:
            row: without ``time``, and without ``split`` in a row of training.
        """
        if not self.enabled:
            return
        row = {SPLIT: TRAIN, **row, TIME: round(time.time(), 3)}
        self.file.append(_line(row))
        self.board.row(row)
        if self.monitor is not None and self.monitor.enabled and row[SPLIT] in (TRAIN, VALIDATION):
            samples = row[STEP] * self.batch_size
            numbers = {name: row[name] for name in row if name != STEP and isinstance(row[name], int | float)}
            self.monitor.write_events([(f"{row[SPLIT]}/{name}", value, samples) for name, value in numbers.items()])

    def write_example(self, example: dict[str, Any]) -> None:
        """Write one held-out example with its prediction; see ``training.monitoring.examples``."""
        if not self.enabled:
            return
        example = {**example, TIME: round(time.time(), 3)}
        self.examples.append(_line(example))
        self.board.example(example)

    def rolled_back(self) -> None:
        """Show no more what a roll-back has undone, once the guard's row of it is written."""
        if not self.enabled:
            return
        self.examples.close()
        self._show_what_stands()
        self.examples = GrowingFile(self.examples_path)

    def end(self, *, success: bool) -> None:
        """Note in TensorBoard how the run ended. Without this, it takes the run to be going on."""
        if self.enabled:
            self.board.end(success=success)

    def close(self) -> None:
        """Close all files."""
        if self.enabled:
            self.file.close()
            self.examples.close()
            self.board.close()

    @property
    def nbytes(self) -> int:
        """Length of ``metrics.jsonl``; 0 on other ranks than 0."""
        return self.file.nbytes if self.enabled else 0

    def _show_what_stands(self) -> None:
        """Write the event file anew, and the examples of the evaluations that stand."""
        rows = standing_rows(self.path, self.file.waiting)
        evaluated: set[int] = set()
        examples = self._examples_of(evaluated)
        self.board.begin(_noting_evaluations(rows, evaluated), examples)
        if self.examples_path.exists():
            try:
                write_atomically(self.examples_path, b"".join(map(_line, self._examples_of(evaluated))))
            except OSError as error:  # as of a full disk, which ends no run
                logger.warning("%s: %s; it keeps examples of steps that are made again", self.examples_path, error)

    def _examples_of(self, evaluated: set[int]) -> Iterator[dict[str, Any]]:
        if self.examples_path.exists():
            with self.examples_path.open("rb") as file:
                for line in file:
                    row = row_of(line)
                    if row is not None and row[STEP] in evaluated:
                        yield row

    def _truncate(self, size: int, step: int | None) -> None:
        """Keep the first ``size`` bytes and the row of the checkpoint of ``step``; not a row that a crash cut off."""
        data = self.path.read_bytes()
        kept = [line for line in data[:size].splitlines(keepends=True) if row_of(line) is not None]
        for line in data[size:].splitlines(keepends=True):
            row = row_of(line) or {}
            if (row.get(SPLIT), row.get(STEP)) == (CHECKPOINT, step) and ERROR not in row:
                kept.append(line)
                break
        write_atomically(self.path, b"".join(kept))


def _line(row: Mapping[str, Any]) -> bytes:
    return to_json(finite_or_null(row)).encode() + b"\n"


def _noting_evaluations(rows: Iterator[dict[str, Any]], evaluated: set[int]) -> Iterator[dict[str, Any]]:
    """Pass the rows on, and add the steps of evaluations to ``evaluated``."""
    for row in rows:
        if row.get(SPLIT) == VALIDATION:
            evaluated.add(row[STEP])
        yield row
