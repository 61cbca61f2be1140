"""Settings of every test process."""

import sys
from collections.abc import Iterator

import pytest


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
