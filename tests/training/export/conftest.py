"""A run to export."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.trained import trained_run


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, of the paper's routing: with a capacity, and second experts drawn."""
    folder = tmp_path_factory.mktemp("trained")
    return trained_run(
        folder, data=corpus, training={"steps": 2, "eval_every": 2, "eval_examples": 16, "save_every": 2}
    )
