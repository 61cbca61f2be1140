"""Worker processes: the same batches as without them, exact state, and what happens when somebody dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from common.project import ROOT
from data.config import DataConfig
from data.sources.retry import DataError
from data.streaming.loader import PretrainingLoader
from data.streaming.worker import WorkerPool
from data.tokenizer import Tokenizer
from tests.support.broken_source import BrokenSource

MakeLoader = Callable[..., PretrainingLoader]
WriteShards = Callable[..., str]


@pytest.fixture
def make(make_loader: MakeLoader) -> Iterator[MakeLoader]:
    """As `make_loader`; all workers are ended after the test."""
    made: list[PretrainingLoader] = []

    def make(**settings: Any) -> PretrainingLoader:
        made.append(make_loader(**settings))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def workers(loader: PretrainingLoader) -> list[psutil.Process]:
    loader.start()
    assert isinstance(loader._server, WorkerPool)
    return [psutil.Process(process.pid) for process in loader._server._processes]


@contextmanager
def soon(seconds: float = 10.0) -> Iterator[Callable[[], bool]]:
    deadline = time.monotonic() + seconds

    def wait() -> bool:
        time.sleep(0.02)
        assert time.monotonic() < deadline
        return True

    yield wait


@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 3), (2, 4), (3, 2)])
def test_batches_and_states_are_those_without_workers(make: MakeLoader, num_workers: int, batch_size: int) -> None:
    alone = make(batch_size=batch_size)
    served = make(batch_size=batch_size, num_workers=num_workers)
    for _ in range(40):
        np.testing.assert_equal(served.next_batch(), alone.next_batch())
        assert served.state_dict() == alone.state_dict()
    assert served.metrics() == alone.metrics()


def test_the_number_of_workers_may_change_on_resume(make: MakeLoader) -> None:
    alone = make(batch_size=3)
    state = alone.state_dict()
    for num_workers in (2, 0, 4, 1):
        resumed = make(batch_size=3, num_workers=num_workers)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(7):
            np.testing.assert_equal(resumed.next_batch(), alone.next_batch())
        state = resumed.state_dict()
        assert state == alone.state_dict()


def test_a_loaded_state_replaces_what_workers_have_read_ahead(make: MakeLoader) -> None:
    loader = make(num_workers=2)
    first = [loader.next_batch() for _ in range(5)]
    state = loader.state_dict()
    for _ in range(9):
        loader.next_batch()
    loader.load_state_dict(state)
    alone = make()
    np.testing.assert_equal(first, [alone.next_batch() for _ in range(5)])
    np.testing.assert_equal(loader.next_batch(), alone.next_batch())


def test_workers_stop_when_they_are_far_enough_ahead(make: MakeLoader) -> None:
    loader = make(num_workers=1, prefetch_batches=2, batch_size=64)
    (worker,) = workers(loader)
    with soon() as wait:
        while worker.cpu_times().user < 0.01 or worker.status() == psutil.STATUS_RUNNING:
            wait()
    with soon(60.0) as wait:  # a worker that never stops never has a second without work
        quiet_since, used = time.monotonic(), worker.cpu_times().user
        while time.monotonic() - quiet_since < 1.0:
            wait()
            if worker.cpu_times().user - used >= 0.1 or worker.status() == psutil.STATUS_RUNNING:
                quiet_since, used = time.monotonic(), worker.cpu_times().user
    loader.next_batch()


def test_a_killed_worker_is_an_error_that_names_its_streams_and_the_loader_can_continue(make: MakeLoader) -> None:
    loader, alone = make(num_workers=2, prefetch_batches=1), make()
    np.testing.assert_equal(loader.next_batch(), alone.next_batch())
    workers(loader)[1].kill()
    state = loader.state_dict()
    with pytest.raises(DataError, match=r"worker 1 of rank 0, .* streams \[1, 3\], was killed by SIGKILL") as caught:  # noqa: PT012
        for _ in range(100):
            state = loader.state_dict()
            loader.next_batch()
            alone.next_batch()
    assert "\n" not in str(caught.value)
    assert loader.state_dict() == state
    for _ in range(3):
        np.testing.assert_equal(loader.next_batch(), alone.next_batch())


def test_the_signals_of_the_launcher_leave_workers_to_the_trainer(make: MakeLoader) -> None:
    loader, alone = make(num_workers=1, prefetch_batches=1), make()
    np.testing.assert_equal(loader.next_batch(), alone.next_batch())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        workers(loader)[0].send_signal(number)
    for _ in range(20):
        np.testing.assert_equal(loader.next_batch(), alone.next_batch())


def test_bad_data_is_the_same_error_at_the_same_batch_as_without_workers(
    tmp_path: Path, make: MakeLoader, make_texts: Callable[..., list[str]], write_shards: WriteShards
) -> None:
    good = [make_texts(30, seed=seed) for seed in range(4)]
    pattern = write_shards(tmp_path, [*good[:3], [*good[3], *[b"{"] * 50]])
    messages = []
    for num_workers in (0, 2):
        loader, batches = make(train_files=pattern, num_workers=num_workers), 0
        with pytest.raises(DataError, match="stream 3") as caught:  # noqa: PT012
            while True:
                loader.next_batch()
                batches += 1
        messages.append((batches, str(caught.value)))
    assert messages[0] == messages[1] and messages[0][0] > 5


def test_an_unforeseen_failure_brings_its_traceback(
    make_config: Callable[..., DataConfig], tokenizer: Tokenizer
) -> None:
    config = make_config(num_workers=1)
    loader = PretrainingLoader(config, tokenizer, rank=0, world_size=1, batch_size=1, sources=[BrokenSource()])
    with pytest.raises(RuntimeError, match=r"worker 0 of rank 0 failed:\nTraceback(.|\n)*IndexError"):
        loader.next_batch()


PARENT = """
import sys, time
from tests.data.streaming.test_worker import *
config = DataConfig(**json.loads(sys.argv[1]))
loader = PretrainingLoader(config, Tokenizer(config.vocabulary), rank=0, world_size=1, batch_size=2)
loader.next_batch()
print(*(worker.pid for worker in workers(loader)), flush=True)
time.sleep(100)
"""


def test_workers_die_with_a_killed_parent(make_config: Callable[..., DataConfig]) -> None:
    """Two workers, one of which waits with a full queue; no signal reaches them."""
    settings = make_config(num_workers=2, prefetch_batches=1).model_dump_json()
    command = [sys.executable, "-c", PARENT, settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2 and all(child.is_running() for child in children)
        os.kill(parent.pid, signal.SIGKILL)
    with soon() as wait:
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            wait()


def test_too_many_workers_are_refused(make_loader: MakeLoader) -> None:
    with pytest.raises(ValueError, match=r"^data\.num_workers = 3 is more than the 2 streams of a rank .* at most 2$"):
        make_loader(world_size=2, num_workers=3)
