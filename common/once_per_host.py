"""Work that the processes of one launch on one host need the result of, done by one of them: the others read its files.

The files lie in a private temporary folder. A process that works holds a lock, which the system releases when it dies,
and shows that it makes progress: a dead one is replaced by the next, and nobody waits for a stopped one.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import acquire_lock

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 30.0  # without progress of the process that works
STALE_SECONDS = 24 * 3600.0  # what killed processes left is then removed

# Called with an empty folder and a function that shows progress, to be called often; writes the files.
Make = Callable[[Path, Callable[[], None]], None]


@dataclass(frozen=True)
class Launch:
    """The processes of one launch on this host.

    Args:
        name: the same in all of them, and in no others.
        processes: how many they are.
        patience: seconds that others wait for progress of the one that works.
    """

    name: str
    processes: int
    patience: float = PATIENCE_SECONDS

    @contextlib.contextmanager
    def once(self, what: str, make: Make) -> Iterator[Path | None]:
        """Context manager: the folder with the files that one process has made; removed when all have read them.

        Args:
            what: names the work and all that it depends on.
            make: does it; what it raises, this process raises, and the next one tries.

        Yields:
            The folder. None: this process must do the work itself, since the folder cannot be used (an OSError, also of
            ``make``) or the process that works makes no progress.
        """
        made = None
        with contextlib.suppress(OSError):
            folder = self._folder(what)
            made = self._wait(folder, make)
        yield made
        if made is not None:
            with contextlib.suppress(OSError):
                self._leave(folder)

    def _folder(self, what: str) -> Path:
        """The folder of this work, under one that only this user can write. Raises OSError."""
        base = Path(tempfile.gettempdir()) / f"st-moe-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            base.mkdir(mode=0o700)
        found = base.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise OSError(f"{base} is not a private folder of this user")
        for old in base.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = base / hashlib.sha256(f"{self.name}\n{what}".encode()).hexdigest()[:32]
        folder.mkdir(exist_ok=True)
        return folder

    def _wait(self, folder: Path, make: Make) -> Path | None:
        made, lock = folder / "made", folder / "lock"
        with lock.open("ab") as file:
            began = time.time()
            while not made.exists():
                if acquire_lock(file):
                    if not made.exists():
                        self._make(made, lock, make)
                elif time.time() - max(began, lock.stat().st_mtime) > self.patience:
                    return None
                else:
                    time.sleep(POLL_SECONDS)
        return made

    def _make(self, made: Path, lock: Path, make: Make) -> None:
        shown = [time.monotonic()]

        def show_progress() -> None:
            if time.monotonic() - shown[0] > min(1.0, self.patience / 4):
                shown[0] = time.monotonic()
                os.utime(lock)

        os.utime(lock)
        partial = Path(tempfile.mkdtemp(dir=made.parent))
        make(partial, show_progress)
        partial.rename(made)

    def _leave(self, folder: Path) -> None:
        """Note that this process has read the files; the last one removes them."""
        with (folder / "read").open("ab", buffering=0) as file:
            file.write(b".")
            if os.fstat(file.fileno()).st_size >= self.processes:
                shutil.rmtree(folder, ignore_errors=True)


def parent_start() -> str | None:
    """Return what names the parent of this process, which is the launcher of all of this host; None if unknown."""
    try:
        text = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{os.getppid()} {text.rpartition(')')[2].split()[19]}"  # since the start of the system, in clock ticks
    except (OSError, IndexError):
        return None
