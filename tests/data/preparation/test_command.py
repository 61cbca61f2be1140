"""The command that ``data.prepare`` ends with."""

from pathlib import Path

import pytest

from common.project import ROOT
from data.preparation.command import LABORATORY_FOLDER, training_command
from data.preparation.domains.registry import DOMAINS
from training.config.run import load_config

DEFAULT = [name for name, domain in DOMAINS.items() if domain.consent is None]


def _description(domains, **recipe):
    return {
        "first_sentinel_id": 2099,
        "domains": {name: {"validation": {"tokens": 1_000_000}} for name in domains},
        "recipe": {"source": "laboratory", "vocab_size": 2000, "vocabulary": None, "shards": 64} | recipe,
    }


def test_the_laboratory_is_trained_with_its_own_config():
    assert (
        training_command(LABORATORY_FOLDER, _description(DEFAULT))
        == "python train.py --config configs/laboratory_cpu.yaml"
    )
    config = load_config(ROOT / "configs/laboratory_cpu.yaml")
    assert sorted(source.name for source in config.data.mixture) == sorted(DEFAULT)
    assert config.data.validation_domains() == [source.name for source in config.data.mixture]
    assert config.data.vocabulary == f"{LABORATORY_FOLDER}/vocabulary"


@pytest.mark.parametrize(
    ("out", "domains", "recipe"),
    [
        (Path("runs/data/elsewhere"), DEFAULT, {}),
        (LABORATORY_FOLDER, DEFAULT[:-1], {}),
        (LABORATORY_FOLDER, DEFAULT, {"vocab_size": 4000}),
        (LABORATORY_FOLDER, DEFAULT, {"vocabulary": "mine"}),
        (LABORATORY_FOLDER, DEFAULT, {"shards": 32}),
        (LABORATORY_FOLDER, DEFAULT, {"source": "files"}),
    ],
)
def test_anything_else_is_trained_with_the_small_config_and_its_own_settings(out, domains, recipe):
    command = training_command(out, _description(domains, **recipe))
    assert command.startswith("python train.py --config configs/tiny.yaml ")
    assert f"data.vocabulary={out}/vocabulary" in command
