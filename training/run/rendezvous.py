"""How the ranks of a run meet at the rendezvous store, and the last words that a failing rank leaves there.

Without last words the others would wait for a rank that never comes: a launcher ends the ranks of its own host at most.
"""

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from common.exit_codes import LOST_RANK, RunError
from common.strict_json import to_json
from common.text import spans
from training.config.errors import ConfigError
from training.run.known_warnings import silence_known_warnings
from training.run.process import Process

WORDS = "run/last_words"
READ = "run/last_words_read"  # how many ranks have read them
JOINED, CAME, FIRST = "start/joined", "start/came", "start/first"  # how many ranks came, which, whether rank 0 did
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0  # for one connection to a host that answers
GRACE_SECONDS = 3.0  # rank 0 reports first
FILES_OF_A_RANK = 2  # connections that it keeps with the store: its own and the watchdog's
OTHER_FILES = 512


T = TypeVar("T")


class LastWords(NamedTuple):
    """Why a rank ended the run."""

    rank: int
    host: str
    code: int  # with which all ranks exit
    text: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.text}"


class FailedStartError(RunError):
    """Not all ranks have started."""

    def __init__(self, message: str, code: int = LOST_RANK):
        super().__init__(message)
        self.code = code


def meet(process: Process, timeout_seconds: float) -> Any:
    """Wait until all ranks have started.

    Returns:
        A connection to the rendezvous store.

    Raises:
        ConfigError: the store cannot be opened as MASTER_ADDR and MASTER_PORT say, or rank 0 may not open a file for
            each of its connections.
        FailedStartError: a rank has failed or did not come in time; names it.
    """
    _allow_files(process)
    store = _open(process, timeout_seconds)
    deadline = time.monotonic() + timeout_seconds + (GRACE_SECONDS if process.rank else 0.0)
    try:
        store.append(CAME, f"{process.rank} ")
        if process.rank == 0:
            store.set(FIRST, "")
        joined = store.add(JOINED, 1)
        while joined < process.world_size:
            if (words := read_words(store)) is not None:
                have_read(store)
                wait_for_readers(store, process, GRACE_SECONDS)
                raise FailedStartError(str(words), words.code)
            if time.monotonic() > deadline:
                came = set(map(int, store.get(CAME).split()))
                missing = spans([rank for rank in range(process.world_size) if rank not in came])
                text = (
                    f"rank {missing} of {process.world_size} did not start within "
                    f"{timeout_seconds:.0f} s (training.start_timeout_seconds): see the output of its host"
                )
                leave_words(store, process, text, LOST_RANK)
                wait_for_readers(store, process, GRACE_SECONDS)
                raise FailedStartError(text)
            time.sleep(POLL_SECONDS)
            joined = store.add(JOINED, 0)
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        raise FailedStartError(f"rank 0 is gone: the rendezvous store at {_where()} ended ({_line(error)})") from error
    if joined > process.world_size:
        raise FailedStartError(f"more than {process.world_size} ranks meet at {_where()}: set another MASTER_PORT")
    return store


def connect(timeout_seconds: float) -> Any:
    """Return another connection to the rendezvous store, which must have been opened. Raises OSError, RuntimeError."""
    from torch.distributed import PrefixStore, TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=timeout_seconds)
    socket.create_connection((address, port), CONNECT_SECONDS).close()  # TCPStore prints a warning for each attempt
    # torchrun's own store outlives the ranks that it restarts: what an earlier attempt has left is not for this one.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}", TCPStore(address, port, None, False, timeout, wait_for_workers=False))


def read_words(store: Any) -> LastWords | None:
    """Return the last words of a rank, None as long as none has failed."""
    return LastWords(*json.loads(store.get(WORDS))) if store.check([WORDS]) else None


def leave_words(store: Any, process: Process, text: str, code: int) -> LastWords:
    """Tell the other ranks why this one ends the run. Returns the words that stand: the first rank's."""
    words = LastWords(process.rank, socket.gethostname(), code, text)
    return LastWords(*json.loads(store.compare_set(WORDS, "", to_json(words))))


def have_read(store: Any) -> None:
    """Note that this rank has read the last words of another one."""
    store.add(READ, 1)


def wait_for_readers(store: Any, process: Process, seconds: float) -> None:
    """On rank 0, with which the store ends, wait until the other ranks have read the last words."""
    deadline = time.monotonic() + seconds
    while process.rank == 0 and time.monotonic() < deadline and store.add(READ, 0) < process.world_size - 1:
        time.sleep(POLL_SECONDS)


def tell_before_meeting(process: Process, text: str, code: int, timeout_seconds: float) -> LastWords | None:
    """Tell the other ranks why this one does not come.

    Rank 0 stays until the others have heard it, the others wait until rank 0 listens, both for ``timeout_seconds`` at
    most.

    Returns:
        The words that stand: another rank may have been the first. None if nobody could be told.
    """
    try:
        store = _open(process, timeout_seconds)
        if process.rank != 0:
            _let_rank_0_speak(store)
        standing = leave_words(store, process, text, code)
        if process.rank != 0:
            have_read(store)
        wait_for_readers(store, process, timeout_seconds)
    except (OSError, RuntimeError, ValueError):
        return None
    return standing


def _let_rank_0_speak(store: Any) -> None:
    """Wait a moment until rank 0 has left its words or comes to meet the others.

    It opens the store a moment before it says why: without this wait another rank could be the first to say the same,
    and the user would read it twice.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and not store.check([WORDS]) and not store.check([FIRST]):
        time.sleep(POLL_SECONDS)


def _open(process: Process, timeout_seconds: float) -> Any:
    """Connect to the store; rank 0 opens it unless torchrun has."""
    silence_known_warnings()
    from torch.distributed import DistNetworkError, PrefixStore, TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR = {address!r} has no address on {socket.gethostname()} ({error.strerror}): set it to a name "
            "or address of rank 0's host that every host knows"
        ) from error
    if process.rank == 0 and not _torchrun_has_store():
        _check_port(port)
        timeout = timedelta(seconds=timeout_seconds)
        try:
            # An address of another host would never answer: the server listens on all of this one's.
            server = TCPStore(address, port, process.world_size, True, timedelta(seconds=CONNECT_SECONDS), False)
        except DistNetworkError as error:
            raise ConfigError(
                f"MASTER_ADDR = {address!r} is not rank 0's host, {socket.gethostname()}, or does not answer there "
                f"({_line(error)}): set it to a name or address of this host"
            ) from error
        server.set_timeout(timeout)
        return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:  # a stopped process accepts a connection, and the client waits for ever for its greeting
            return within(max(CONNECT_SECONDS, deadline - time.monotonic()), lambda: connect(timeout_seconds))
        except (OSError, DistNetworkError) as error:
            if time.monotonic() > deadline:
                raise FailedStartError(
                    f"rank 0 does not answer at {_where()} within {timeout_seconds:.0f} s "
                    f"(training.start_timeout_seconds; {_line(error)}): see the output of its host"
                ) from error
        time.sleep(POLL_SECONDS)


def _allow_files(process: Process) -> None:
    """Let this process open a file for each connection to rank 0's store, and one for each rank of a checkpoint.

    Raises:
        ConfigError: the system does not let rank 0.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_RANK * process.world_size + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed and process.rank == 0 and not _torchrun_has_store():
        raise ConfigError(
            f"ulimit -Hn = {allowed} on {socket.gethostname()}: rank 0 of {process.world_size} opens up to {needed} "
            f"files: let it (ulimit -n {needed})"
        )


def _check_port(port: int) -> None:
    """Raise ConfigError if another process listens on a port of this host: TCPStore would print a stack trace."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_PORT = {port} cannot be used on {socket.gethostname()} ({error.strerror}): set another one "
                "(--master_port of deepspeed or torchrun), or end the process that listens there"
            ) from error


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return ``function()``, called on a thread, for code that can block for ever. Raises TimeoutError."""
    outcome: list[T] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError("no answer")
    return outcome[0]


def _where() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"


def _torchrun_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()
