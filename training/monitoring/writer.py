"""Writes rows of metrics to ``metrics.jsonl`` and TensorBoard."""

import contextlib
import json
import os
import time
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.files import write_atomically
from common.logs import get_logger
from common.strict_json import finite_or_null, to_json
from training.monitoring.columns import CHECKPOINT, ERROR, SPLIT, STEP, TIME, TRAIN
from training.run.folder import RunFolder

logger = get_logger(__name__)


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and TensorBoard on rank 0; elsewhere it does nothing.

    A full disk ends no run here: rows wait in memory until there is room; TensorBoard may lack some.

    Args:
        folder: of the run.
        enabled: whether this is rank 0.
        resume_step: of the checkpoint from which the run resumes. None: a new run, or one that begins again.
        resume_bytes: length of the file when that checkpoint was begun. Later rows belong to steps that the resumed run
            makes again: they are removed, but for the row of the checkpoint itself.
    """

    def __init__(self, folder: RunFolder, *, enabled: bool, resume_step: int | None = None, resume_bytes: int = 0):
        self.path, self.enabled = folder.metrics_file, enabled
        self.waiting = b""
        if not enabled:
            return
        if self.path.exists():
            self._truncate(resume_bytes, resume_step)
        self.file = self.path.open("ab", buffering=0)
        purge_step = 0 if resume_step is None else resume_step + 1  # TensorBoard shows earlier events of these no more
        self.board = SummaryWriter(str(folder.tensorboard), purge_step=purge_step)

    def write(self, row: dict[str, Any]) -> None:
        """Write one JSON object on a line of its own; numbers and texts go to TensorBoard under the split's name.

        Args:
            row: without ``time``, and without ``split`` in a row of training.
        """
        if not self.enabled:
            return
        row = {SPLIT: TRAIN, **row, TIME: round(time.time(), 3)}
        self.waiting += to_json(finite_or_null(row)).encode() + b"\n"
        size = self.nbytes
        try:
            written = self.file.write(self.waiting)
            if written == len(self.waiting):
                self.waiting = b""
            else:
                os.truncate(self.path, size)  # no partial row
        except OSError as error:
            logger.warning("%s: %s; rows wait in memory", self.path, error)
        with contextlib.suppress(OSError):
            self._write_board(row)

    def _write_board(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name in (STEP, SPLIT, TIME):
                continue
            if isinstance(value, int | float):
                self.board.add_scalar(f"{row[SPLIT]}/{name}", value, row[STEP], row[TIME])
            elif isinstance(value, str):
                self.board.add_text(f"{row[SPLIT]}/{name}", value, row[STEP], row[TIME])
        self.board.flush()

    def close(self) -> None:
        """Flush and close both."""
        if self.enabled:
            self.file.close()
            with contextlib.suppress(OSError):
                self.board.close()

    @property
    def nbytes(self) -> int:
        """Length of ``metrics.jsonl``; 0 on other ranks than 0."""
        return self.path.stat().st_size if self.enabled else 0

    def _truncate(self, size: int, step: int | None) -> None:
        """Keep the first ``size`` bytes and the row of the checkpoint of ``step``; not a row that a crash cut off."""
        data = self.path.read_bytes()
        kept = [line for line in data[:size].splitlines(keepends=True) if _row(line) is not None]
        for line in data[size:].splitlines(keepends=True):
            row = _row(line) or {}
            if (row.get(SPLIT), row.get(STEP)) == (CHECKPOINT, step) and ERROR not in row:
                kept.append(line)
                break
        write_atomically(self.path, b"".join(kept))


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, None otherwise."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None
