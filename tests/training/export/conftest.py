"""A run to export."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import train
from tests.support.small import small_config


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, of the paper's routing: with a capacity, and second experts drawn."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(
        folder, data=corpus, training={"steps": 2, "eval_every": 2, "eval_examples": 16, "save_every": 2}
    )
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = train(file)
    assert result.returncode == 0, result.stderr[-3000:]
    return config.run_dir
