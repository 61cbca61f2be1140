"""A run that answers tasks, its export, and small tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tasks import small_tasks
from tests.support.trained import trained_run
from training.export.export import export


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, of the paper's routing: with a capacity, and second experts drawn.

    Its weights are so large that the inputs decide what it writes, as after long training.
    """
    folder = tmp_path_factory.mktemp("trained")
    model = {"num_layers": 2, "sparse_step": 2, "initializer_scale": 4.0}
    training = {"steps": 4, "eval_every": 4, "eval_examples": 16, "save_every": 4}
    return trained_run(folder, data=corpus, model=model, training=training)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    folder = trained.parent.parent / "exported"
    export(trained, folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tasks(tmp_path_factory.mktemp("tasks"))
