"""Settings of every test process."""

import logging
import signal
import sys
from collections.abc import Iterator

import pytest

from common.logs import ROOT_LOGGER


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts() -> None:
    """Let tests send Ctrl-C to programs: a shell's background jobs ignore it, and so would all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread: several test processes share the cores, and OpenMP's threads spin while they wait."""
    if "torch" in sys.modules:  # a test module has imported it when the first test begins, or none needs it
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> Iterator[None]:
    """End the server of ``tests.support.forks``, if a test started it."""
    yield
    if "tests.support.forks" in sys.modules:
        sys.modules["tests.support.forks"].stop_server()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """Undo what a test's program made of the log, so that ``caplog`` sees the records of the next test."""
    logger = logging.getLogger(ROOT_LOGGER)
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before
