"""Worker processes that prepare a rank's batches ahead of training: `python -m data.streaming.worker FD PARENT`.

Plain programs, not `multiprocessing` children, which would import the training script, and torch with it. Each is sent
its pickled `StreamGroup` over a socket, and sends one message per batch that its streams have a part in.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from common.logs import configure_logging
from common.project import ROOT
from data.sources.retry import DataError
from data.streaming.group import Schedule, StreamGroup, Taken

LOOK_FOR_PARENT_SECONDS = 1.0
WAIT_FOR_EXIT_SECONDS = 5.0


class WorkerPool:
    """Workers of one rank; the streams are dealt to them in turn.

    A worker is at most `prefetch` batches ahead, and what the socket holds. What it is ahead is not part of any state.

    Args:
        groups: the streams of each worker, in the states from which to go on.
        schedule: of this rank.
        next_example: global example from which to go on.
        prefetch: batches.
    """

    def __init__(self, groups: Sequence[StreamGroup], schedule: Schedule, next_example: int, prefetch: int) -> None:
        self._rank = schedule.rank
        self._streams = [list(group.streams) for group in groups]
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _stop, self._connections, self._processes)
        for _ in groups:
            ours, theirs = Pipe()
            with theirs:
                self._processes.append(_start(theirs))
            self._connections.append(ours)
        for connection, group in zip(self._connections, groups, strict=True):
            with contextlib.suppress(BrokenPipeError):  # a worker that died at its start is reported by `take`
                connection.send((group, schedule, next_example, prefetch))

    def take(self, order: Sequence[int]) -> Taken:
        """As `StreamGroup.take`; `order` is that of the next batch of the schedule.

        Raises:
            DataError: a worker met it, or died; the message names its streams.
            RuntimeError: a worker failed otherwise; with its traceback.
        """
        inputs = labels = None
        states: dict[int, Any] = {}
        retries = 0
        for worker, streams in enumerate(self._streams):
            places = np.flatnonzero(np.isin(order, streams))
            if not len(places):
                continue  # the worker sends nothing for this batch
            part = self._receive(worker)
            if inputs is None or labels is None:
                inputs = np.empty((len(order), part.inputs.shape[1]), np.int32)
                labels = np.empty((len(order), part.labels.shape[1]), np.int32)
            inputs[places], labels[places] = part.inputs, part.labels
            states |= part.states
            retries += part.retries
        assert inputs is not None and labels is not None
        return Taken(inputs, labels, states, retries)

    def _receive(self, worker: int) -> Taken:
        try:
            message = self._connections[worker].recv()
        except (EOFError, ConnectionError):
            status = self._processes[worker].wait(WAIT_FOR_EXIT_SECONDS)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
            raise DataError(
                f"data worker {worker} of rank {self._rank}, which serves the streams {self._streams[worker]}, {how}: "
                "see the messages above and the host's memory; --resume goes on from the newest checkpoint"
            ) from None
        if isinstance(message, DataError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f"data worker {worker} of rank {self._rank} failed:\n{message}")
        assert isinstance(message, Taken)
        return message

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()


def _start(connection: Connection) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "data.streaming.worker", str(connection.fileno()), str(os.getpid())],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def _stop(connections: list[Connection], processes: "list[subprocess.Popen[bytes]]") -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()
        process.wait()


def serve(connection: Connection, parent: int) -> None:
    """Sends what the schedule asks of this worker's streams, until the parent is gone or something fails."""
    group, schedule, next_example, prefetch = connection.recv()
    ready: queue.Queue[Taken | DataError | str] = queue.Queue(prefetch)
    sender = threading.Thread(target=_send, args=(connection, ready, parent), daemon=True)
    sender.start()
    try:
        while True:
            order = [stream for stream in schedule.streams(next_example) if stream in group.streams]
            next_example = schedule.after(next_example)
            if order:
                ready.put(group.take(order))
    except DataError as error:
        ready.put(error)
    except Exception:
        ready.put(traceback.format_exc())
    sender.join()


def _send(connection: Connection, ready: "queue.Queue[Taken | DataError | str]", parent: int) -> None:
    """Sends until the last message, an error, is out; ends the process when there is nobody to read."""
    message: Taken | DataError | str | None = None
    while not isinstance(message, DataError | str):
        try:
            message = ready.get(timeout=LOOK_FOR_PARENT_SECONDS)
            connection.send(message)
        except queue.Empty:
            # The socket alone would tell only the next time that there is something to send.
            if os.getppid() != parent:
                os._exit(1)
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    configure_logging()
    # The launcher signals the whole tree of processes; the trainer decides what becomes of its data, and workers go
    # when it has gone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a scheduler's early warning
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
