"""A run's configuration on files, and run folders as ``train.py`` leaves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies.runner.runs import Run, make_run
from tests.support.corpus import write_corpus
from tests.support.small import small_config
from training.run.folder import RunFolder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    """A small sparse model's YAML file; its text is not there."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_config(tmp_path).model_dump()))
    return str(file)


@pytest.fixture
def finished(config_file: str, tmp_path: Path) -> Callable[..., Run]:
    """Makes the folder of a run that gave this validation cross-entropy, L_Z and largest logit."""

    def make(variant: str, seed: int, cross_entropy: float, z: float = 4.0, logit: float = 1.0) -> Run:
        overrides = {"model.router_z_coefficient": 0.001 if variant == "router_z_loss" else 0.0}
        run = make_run(config_file, ["training.steps=10"], variant, seed, tmp_path / "study", overrides)
        RunFolder(run.config.run_dir).write_config(run.config)
        rows: list[dict[str, Any]] = [row(step, 5.0 - step / 10) for step in range(1, 11)]
        rows.append({"split": "validation", "step": 10, "cross_entropy": cross_entropy, "router_z_loss": z,
                     "max_router_logit": logit})  # fmt: skip
        write_rows(run, rows)
        (run.dir / "summary.json").write_text(json.dumps({"parameters_total": 1000, "tokens": 500}))
        return run

    return make


def row(step: int, cross_entropy: float, grad_norm: float = 1.0) -> dict[str, Any]:
    return {"step": step, "cross_entropy": cross_entropy, "grad_norm": grad_norm, "skipped_steps": 0,
            "router_z_loss": 4.0, "max_router_logit": 1.0}  # fmt: skip


def write_rows(run: Run, rows: list[dict[str, Any]]) -> None:
    run.dir.mkdir(parents=True, exist_ok=True)
    (run.dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
