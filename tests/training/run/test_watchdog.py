"""A rank that is stopped or hangs: the others end in time and name it, with its phase."""

import functools
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from tests.support.processes import started
from tests.support.small import small_config
from training.run.beats import AwakeClock, Beat, Beats
from training.run.process import Process
from training.run.rendezvous import connect, read_words
from training.run.watchdog import Watchdog

TIMEOUT_SECONDS = 20.0  # also of the collectives with which the ranks start, on a machine that may be busy


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    return server


def _say(said: list[str], line: str, code: int) -> None:
    assert code == 4
    said.append(line)


def watch(
    timeout: float, act: Callable[[list[Watchdog]], None], silence: float = 60.0, until: int = 0
) -> list[list[str]]:
    """Return what each of three ranks in one process said at its end, when rank ``until`` has said something."""
    said: list[list[str]] = [[], [], []]
    ranks = [
        Watchdog(Process(rank, rank, 3, 3), timeout, silence, functools.partial(_say, said[rank])) for rank in range(3)
    ]
    began = time.monotonic()
    while time.monotonic() - began < timeout and not said[until]:
        act(ranks)
        time.sleep(0.02)
    for rank in ranks:
        rank.close()
    return said


def test_ranks_that_make_progress_are_left_alone(store: TCPStore):
    """Those that enter one phase after the other, and one whose phase is longer than its limit, and advances."""

    def act(ranks: list[Watchdog]) -> None:
        for rank in ranks:
            if rank.rank == 2 and rank.phase == "building the model":
                rank.advance()
            else:
                rank.enter("building the model", 7)

    assert watch(4.0, act) == [[], [], []]


def test_the_rank_that_is_behind_is_named(store: TCPStore):
    steps = iter(range(10**6))

    def act(ranks: list[Watchdog]) -> None:
        step = next(steps)
        for rank in ranks:
            if step < 5 or (step == 5 and rank.rank != 2):
                rank.enter("reading data", step)

    said = watch(4.0, act)
    assert said[0]
    assert said[0][0].startswith("rank 2 hangs in step 4, reading data, for ")


def test_a_silent_rank_is_named(store: TCPStore):
    def act(ranks: list[Watchdog]) -> None:
        for rank in ranks[:2]:
            rank.enter("updating", 3)
        heard = ranks[0].beats.last.get(2)
        if heard is None or heard[0].phase != "evaluating":
            ranks[2].enter("evaluating", 3)
        else:  # silent once rank 0 knows where it is
            ranks[2].close()

    said = watch(60.0, act, silence=1.0)
    assert said[0]
    assert said[0][0].startswith("rank 2 is dead or stopped: silent for ")
    assert "after step 3, evaluating" in said[0][0]


def test_a_silent_rank_is_the_reason_for_the_others_wait(store: TCPStore):
    """Stopped in the phase in which the others wait for it: their time in it ends before its silence is long enough."""

    def act(ranks: list[Watchdog]) -> None:
        for rank in ranks:
            if rank.step == 0:
                rank.enter("updating", 3)
        heard = ranks[0].beats.last.get(2)
        if heard is not None and heard[0].phase == "updating":
            ranks[2].close()

    said = watch(20.0, act, silence=11.9)  # the phase may take 12 s; the report came after it had begun
    assert said[0]
    assert said[0][0].startswith("rank 2 is dead or stopped: silent for ")


def test_a_rank_whose_process_lives_is_not_dead(store: TCPStore):
    """It computes without the interpreter, such as in a long C function; only what hangs for longer is named."""

    def act(ranks: list[Watchdog]) -> None:
        for rank in ranks[:2]:
            rank.enter("updating", 3)
        if 2 in ranks[0].beats.last:
            ranks[2].closed.set()  # no report any more, but a lifeline

    said = watch(8.0, act, silence=0.5)
    assert said[0]
    assert said[0][0].startswith("rank 2 hangs in step ")
    assert "its process lives but has run no Python for 5 s" in said[0][0]


def test_the_silence_of_rank_0_is_noticed_where_the_store_outlives_it(store: TCPStore):
    def act(ranks: list[Watchdog]) -> None:
        for rank in ranks[1:]:
            rank.enter("updating", 3)
        if 0 in ranks[1].beats.last:
            ranks[0].close()

    said = watch(60.0, act, silence=1.0, until=1)
    assert said[1]
    assert said[1][0].startswith("rank 0 is dead or stopped: silent for ")


def test_a_pause_of_the_watching_process_is_nobodys_silence():
    clock, beats = AwakeClock(longest=0.01), Beats()
    beats.note(1, Beat(1, 1, 1, "updating", 0.0, 60.0), clock.tick())
    time.sleep(0.3)
    assert beats.silent(clock.tick(), 0.1) == []
    assert beats.silent(clock.seconds + 0.2, 0.1) == [1]


def test_a_failing_rank_ends_the_others_with_its_code(store: TCPStore, monkeypatch: pytest.MonkeyPatch):
    ended: list[tuple[int, str, int]] = []
    ranks = [
        Watchdog(Process(rank, rank, 2, 2), 60.0, 60.0, functools.partial(_record, ended, rank)) for rank in range(2)
    ]
    words = ranks[1].tell("data shard x: no such file", 2)
    assert words is not None
    assert (words.rank, words.code) == (1, 2)
    while not ended:
        time.sleep(0.02)
    for rank in ranks:
        rank.close()
    assert {(rank, code) for rank, _, code in ended} == {(0, 2)}
    assert ranks[0].words == words
    again = ranks[0].tell("because of rank 1", 1)
    assert again == words  # the first rank's stand
    # What a restart of torchrun finds in the store that outlives the ranks: nothing.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert read_words(connect(5.0)) is None


def _record(ended: list[tuple[int, str, int]], rank: int, line: str, code: int) -> None:
    ended.append((rank, line, code))


def test_one_process_watches_itself():
    said: list[str] = []
    alone = Watchdog(Process(0, 0, 1, 1), 0.5, 60.0, functools.partial(_say, said))
    alone.enter("reading data", 9)
    time.sleep(0.6)
    alone.close()
    assert said
    assert said[0].startswith("rank 0 hangs in step 9, reading data")


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])  # as long a wait again
def test_a_stopped_rank_ends_the_run_in_time(rank: int, corpus: dict[str, Any], tmp_path: Path):
    config = small_config(
        tmp_path,
        data=corpus,
        parallel={"expert_parallel_size": 2},
        training={"steps": 100_000, "log_every": 1, "eval_examples": 16, "timeout_seconds": TIMEOUT_SECONDS},
    )
    with started(config, tmp_path / "log") as run:
        run.wait_for_rows(10)
        victim, survivor = run.find(f"rank {rank}"), run.find(f"rank {1 - rank}")
        victim.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        survivor.wait(TIMEOUT_SECONDS + 5)
        seconds = time.monotonic() - stopped
        victim.kill()  # the launcher would, after 30 s
        assert run.process.wait(30) == 4
        said = [line for line in run.log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(
        rf"rank {rank} is dead or stopped: .*(step [1-9]\d*, (updating|reading data)|does not answer)", said[0]
    )
    print(f"{said[0]}  ({seconds:.1f} s after SIGSTOP, training.timeout_seconds = {TIMEOUT_SECONDS:.0f})")
    assert seconds <= TIMEOUT_SECONDS
