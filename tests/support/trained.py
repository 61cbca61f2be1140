"""A small run that is trained to its end, for tests of what comes after training."""

from pathlib import Path
from typing import Any

import yaml

from tests.support.launch import train
from tests.support.small import small_config


def trained_run(folder: Path, *, ranks: int = 1, **sections: Any) -> Path:
    """Train ``small_config(folder, **sections)``, written to ``folder/config.yaml``; return the folder of the run."""
    config = small_config(folder, **sections)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = train(file, ranks=ranks)
    assert result.returncode == 0, result.stderr[-3000:]
    return config.run_dir
