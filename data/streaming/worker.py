"""Worker processes that prepare a rank's batches ahead of training: ``python -m data.streaming.worker FD PARENT``.

They are separate programs because ``multiprocessing`` children would import the training script, and torch with it. A
worker receives its pickled ``StreamGroup`` over a socket, and sends one message for each batch that has examples of its
streams.
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

from common.program import begin
from common.project import ROOT
from data.sources.retry import DataError
from data.streaming.group import ExampleBatch, StreamGroup
from data.streaming.schedule import Schedule

CHECK_PARENT_SECONDS = 1.0
WAIT_FOR_EXIT_SECONDS = 5.0


class WorkerPool:
    """The workers of one rank.

    A worker runs at most ``prefetch`` batches ahead, plus what the socket buffers. Batches prepared ahead are not part
    of any state.

    Args:
        groups: streams of each worker, with the states to continue from.
        schedule: schedule of this rank.
        next_example: global example to continue from.
        prefetch: batches that a worker prepares ahead.
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
            with contextlib.suppress(BrokenPipeError):  # ``take`` reports a worker that died at start
                connection.send((group, schedule, next_example, prefetch))

    def take(self, order: Sequence[int]) -> ExampleBatch:
        """Return the next batch; ``order`` must be that of the schedule's next batch. See ``StreamGroup.take``.

        Raises:
            DataError: raised in a worker, or a worker died; the message names its streams.
            RuntimeError: a worker failed otherwise; the message holds its traceback.
        """
        inputs = labels = None
        states: dict[int, Any] = {}
        retries = 0
        for worker, streams in enumerate(self._streams):
            rows = np.flatnonzero(np.isin(order, streams))
            if not len(rows):
                continue  # the worker sends nothing for this batch
            share = self._receive(worker)
            if inputs is None or labels is None:
                inputs = np.empty((len(order), share.inputs.shape[1]), np.int32)
                labels = np.empty((len(order), share.labels.shape[1]), np.int32)
            inputs[rows], labels[rows] = share.inputs, share.labels
            states |= share.states
            retries += share.retries
        assert inputs is not None and labels is not None
        return ExampleBatch(inputs, labels, states, retries)

    def _receive(self, worker: int) -> ExampleBatch:
        try:
            message = self._connections[worker].recv()
        except (EOFError, ConnectionError):
            status = self._processes[worker].wait(WAIT_FOR_EXIT_SECONDS)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
            raise DataError(
                f"data worker {worker} of rank {self._rank}, which serves the streams {self._streams[worker]}, {how}: "
                "check the messages above and the host's memory, then continue the run with --resume"
            ) from None
        if isinstance(message, DataError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(f"data worker {worker} of rank {self._rank} failed:\n{message}")
        assert isinstance(message, ExampleBatch)
        return message

    def close(self) -> None:
        """Kill the workers and wait for them."""
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
    """Send this worker's share of each batch of the schedule, until the parent is gone or an error occurs."""
    group, schedule, next_example, prefetch = connection.recv()
    ready: queue.Queue[ExampleBatch | DataError | str] = queue.Queue(prefetch)
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


def _send(connection: Connection, ready: "queue.Queue[ExampleBatch | DataError | str]", parent: int) -> None:
    """Send messages up to and including an error, the last one. Exit the process if the parent is gone."""
    message: ExampleBatch | DataError | str | None = None
    while not isinstance(message, DataError | str):
        try:
            message = ready.get(timeout=CHECK_PARENT_SECONDS)
            connection.send(message)
        except queue.Empty:
            # A closed socket is only noticed when something is sent.
            if os.getppid() != parent:
                os._exit(1)
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    begin()
    # The launcher signals the whole process tree. Workers ignore it: they serve until the trainer closes or exits.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a scheduler's early warning
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
