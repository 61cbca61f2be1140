"""Ranks that do not meet: the others learn in time which rank, and why."""

import re
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from common.ports import free_port
from training.config.errors import ConfigError
from training.run.process import Process
from training.run.rendezvous import (
    FailedStartError,
    LastWords,
    _allow_files,
    leave_words,
    meet,
    tell_before_meeting,
)

RANKS = [Process(rank, rank, 2, 2) for rank in range(2)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Return what each function returns or raises, all called at once on threads."""
    outcomes: list[Any] = [None] * len(functions)

    def call(index: int, function: Callable[[], Any]) -> None:
        try:
            outcomes[index] = function()
        except Exception as error:
            outcomes[index] = error

    threads = [threading.Thread(target=call, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def test_ranks_meet_whoever_comes_first():
    def late() -> Any:
        time.sleep(0.5)
        return meet(RANKS[0], 30)

    first, second = together(late, lambda: meet(RANKS[1], 30))
    first.set("key", "value")
    assert second.get("key") == b"value"


def test_a_rank_that_does_not_come_is_named_in_time():
    began = time.monotonic()
    with pytest.raises(FailedStartError, match=r"rank 1 of 2 did not start within 1 s .*start_timeout_seconds"):
        meet(RANKS[0], 1)
    with pytest.raises(FailedStartError, match=r"rank 0 does not answer at 127\.0\.0\.1:\d+ .* within 1 s"):
        meet(RANKS[1], 1)
    assert time.monotonic() - began < 30


def test_ranks_that_do_not_come_are_named_as_spans():
    ranks = [Process(rank, rank, 9, 9) for rank in range(9)]
    outcomes = together(*(lambda rank=rank: meet(ranks[rank], 2) for rank in (0, 1, 5)))
    words = [str(error) for error in outcomes]
    assert re.search(r"^rank 2-4, 6-8 of 9 did not start within 2 s", words[0])
    assert all("rank 2-4, 6-8 of 9" in text for text in words)


def test_rank_0_may_open_a_file_for_each_rank(monkeypatch: pytest.MonkeyPatch):
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, now: limits.update(now=now))
    _allow_files(Process(0, 0, 256, 8))
    assert limits["now"] == (1024, 4096)  # enough
    _allow_files(Process(3, 3, 512, 8))
    assert limits["now"] == (1536, 4096)
    _allow_files(Process(3, 3, 4096, 8))  # others open none of rank 0's connections
    assert limits["now"] == (4096, 4096)
    with pytest.raises(ConfigError, match=r"^ulimit -Hn = 4096 on .*: rank 0 of 4096 opens up to 8704 files: let it"):
        _allow_files(Process(0, 0, 4096, 8))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    _allow_files(Process(0, 0, 4096, 8))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_before_says_why_to_the_others(failing: int):
    words, error = together(
        lambda: tell_before_meeting(RANKS[failing], "data.train_files: none", 2, 30),
        lambda: meet(RANKS[1 - failing], 30),
    )
    assert words == LastWords(failing, socket.gethostname(), 2, "data.train_files: none")
    assert isinstance(error, FailedStartError)
    assert error.code == 2
    assert str(error) == f"rank {failing} on {socket.gethostname()}: data.train_files: none"


def test_of_ranks_that_fail_alike_rank_0_says_it_however_late(monkeypatch: pytest.MonkeyPatch):
    def slow_rank_0(store: Any, process: Process, text: str, code: int) -> LastWords:
        time.sleep(1.0 - process.rank)
        return leave_words(store, process, text, code)

    monkeypatch.setattr("training.run.rendezvous.leave_words", slow_rank_0)
    words = together(*(lambda rank=rank: tell_before_meeting(rank, "no vocabulary", 2, 30) for rank in RANKS))
    assert words == [LastWords(0, socket.gethostname(), 2, "no vocabulary")] * 2


def test_a_port_in_use_and_an_unknown_host_are_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match=r"MASTER_PORT = \d+ cannot be used on .*Address already in use"):
            meet(RANKS[0], 5)
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR = 'no-such-host\.invalid' has no address"):
        meet(RANKS[1], 5)
    assert capfd.readouterr().err == ""
