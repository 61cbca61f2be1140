"""One small corpus for all tests of training."""

from typing import Any

import pytest

from tests.support.corpus import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ``data`` section of a prepared data set."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
