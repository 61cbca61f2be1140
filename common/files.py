"""Files that other processes read, or that must survive a crash: atomic writes, durable names, locks."""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# What fsync gives for a folder where it means nothing.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EROFS})


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write and flush a file to disk, then rename it: readers see the old file or all of the new one.

    Of two processes that write the same path at once, one wins. ``sync_folder`` makes the name durable, too.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system, such as a full disk, name the file that is written in the block."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to disk, so that new and renamed files survive a crash of the host.

    Some network and user-space file systems cannot do that for a folder: there the names are as durable as they make
    them. Errors of the disk itself are raised.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def wait_for_lock(file: IO[Any], what: str) -> None:
    """Take the lock of an open file, alone; say on stderr that another process holds it, if one does.

    Args:
        file: any open file.
        what: the other process does, such as ``preparing runs/data/c4``.

    Raises:
        OSError: the file system has no locks.
    """
    if not acquire_lock(file):
        print(f"another process is {what}: waiting for it to end", file=sys.stderr, flush=True)
        acquire_lock(file, wait=True)


def acquire_lock(file: IO[Any], *, wait: bool = False, shared: bool = False) -> bool:
    """Take the lock of an open file. It is held until this process, and all that inherited the file, have closed it.

    Args:
        file: any open file; its contents do not matter.
        wait: wait until no other process holds the lock.
        shared: together with other shared holders, rather than alone.

    Returns:
        Whether the lock is held now; False only without ``wait``.

    Raises:
        OSError: the file system has no locks.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    return True
