"""One event file of TensorBoard, written in whole records."""

import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from training.monitoring.appending import GrowingFile
from training.monitoring.tensorboard.records import record

PREFIX = "events.out.tfevents."


def event_files(folder: Path) -> list[Path]:
    """Return the event files of a folder in the order in which TensorBoard reads them: by name, which is by time."""
    return sorted(folder.glob(f"{PREFIX}*"))


class EventFile:
    """A new event file that TensorBoard reads after all others of its folder.

    It begins with the sign of a new session at step 0, after which a server that has read the older files forgets what
    they held.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        seconds = [int(found[1]) for path in event_files(folder) if (found := re.match(r"(\d+)", _suffix(path)))]
        second = max([int(time.time()), *(second + 1 for second in seconds)])
        self.path = folder / f"{PREFIX}{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = GrowingFile(self.path)
        now = time.time()
        start = SessionLog(status=SessionLog.START)
        self._add([Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, session_log=start)])

    def add(self, values: Iterable[Summary.Value], step: int, wall_time: float) -> None:
        """Write values as one event, so that a crash leaves all of them or none."""
        values = list(values)
        if values:
            self._add([Event(wall_time=wall_time, step=step, summary=Summary(value=values))])

    def _add(self, events: list[Event]) -> None:
        self._file.append(b"".join(record(event.SerializeToString()) for event in events))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _suffix(path: Path) -> str:
    return path.name.removeprefix(PREFIX)
