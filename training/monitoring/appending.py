"""A file that only grows, on a disk that may be full for a while."""

import os
from pathlib import Path

from common.logs import get_logger

logger = get_logger(__name__)


class GrowingFile:
    """Appends whole pieces: a reader, or a crash, never meets a part of one.

    What a full disk refuses waits in memory, and is written with the next piece.

    Args:
        path: created if missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting = b""
        self._file = path.open("ab", buffering=0)

    def append(self, piece: bytes) -> None:
        """Write ``piece`` after all that waits, or let it wait."""
        waited = bool(self.waiting)
        self.waiting += piece
        size = self.nbytes
        try:
            written = self._file.write(self.waiting)
            if written == len(self.waiting):
                self.waiting = b""
                return
            os.truncate(self.path, size)  # no partial piece
            why = "no room for a whole row"
        except OSError as error:
            why = str(error)
        if not waited:
            logger.warning("%s: %s; rows wait in memory until there is room", self.path, why)

    @property
    def nbytes(self) -> int:
        """Length of the file, without what waits."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Try once more to write what waits, and close."""
        if self.waiting:
            self.append(b"")
        self._file.close()
