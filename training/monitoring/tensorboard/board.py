"""TensorBoard's folder of a run: a view of its rows, rebuilt when a roll-back or resume invalidates some.

Servers differ in how they forget the points of steps that are made again. So nothing is left to them: at a resume and
at a roll-back, a new event file gets all that stands, and the old ones are emptied. A server that is running reads the
new file as a session that begins at step 0.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.logs import get_logger
from training.monitoring.columns import GUARD, SPLIT, STEP, TIME, TOKENS
from training.monitoring.tensorboard.events import EventFile, event_files
from training.monitoring.tensorboard.hparams import session_end, session_start
from training.monitoring.tensorboard.layout import layout_summary
from training.monitoring.tensorboard.summaries import against_tokens, of_decisions, of_example, of_row

logger = get_logger(__name__)


class Board:
    """Writes what TensorBoard shows.

    A place that cannot be written costs the run nothing but its curves there: one warning, until the next resume.

    Args:
        folder: of the run's event files.
        hyperparameters: of the HParams page.
        pictures: whether to draw routing.
    """

    def __init__(self, folder: Path, hyperparameters: Mapping[str, bool | float | str], *, pictures: bool = True):
        self.folder, self.hyperparameters, self.pictures = folder, hyperparameters, pictures
        self.file: EventFile | None = None
        self.decisions: list[Mapping[str, Any]] = []  # the guard's

    def begin(self, rows: Iterable[Mapping[str, Any]] = (), examples: Iterable[Mapping[str, Any]] = ()) -> None:
        """Make the folder show these rows and examples, in the order of their steps, and nothing else."""
        self.close()
        self.decisions.clear()
        old = event_files(self.folder)
        with self._noting_errors():
            self.file = EventFile(self.folder)
            rows = iter(rows)
            first = next(rows, None)
            began = time.time() if first is None else first[TIME]
            self.file.add([layout_summary(), *session_start(self.hyperparameters, began)], 0, began)
            if first is not None:
                self.row(first)
            for row in rows:
                self.row(row)
            for example in examples:
                self.example(example)
            for path in old:
                if path.stat().st_size:
                    os.truncate(path, 0)  # a server that reads it goes on to the next file only while it is there
                else:
                    path.unlink()

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a row of ``metrics.jsonl``."""
        if self.file is not None:
            with self._noting_errors():
                self.file.add(of_row(row, pictures=self.pictures), row[STEP], row[TIME])
                self.file.add(against_tokens(row), row.get(TOKENS, 0), row[TIME])
                if row[SPLIT] == GUARD:
                    # Steps go back after a roll-back, and servers then drop what was later: so all in one text.
                    self.decisions.append(row)
                    self.file.add([of_decisions(self.decisions)], len(self.decisions), row[TIME])

    def example(self, example: Mapping[str, Any]) -> None:
        """Show a row of ``examples.jsonl``."""
        if self.file is not None:
            with self._noting_errors():
                self.file.add([of_example(example)], example[STEP], example[TIME])

    def end(self, *, success: bool) -> None:
        """Note how the run ended, for the HParams page."""
        if self.file is not None:
            now = time.time()
            with self._noting_errors():
                self.file.add([session_end(success=success, wall_time=now)], 0, now)

    def close(self) -> None:
        """Close the event file."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()
            self.file = None

    @contextlib.contextmanager
    def _noting_errors(self) -> Any:
        try:
            yield
        except OSError as error:
            logger.warning("%s: %s; TensorBoard may lack points until the next resume", self.folder, error)
