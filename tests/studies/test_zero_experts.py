"""What experts are worth: equal to an evaluation of a model whose experts' output matrices are zero."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies.zero_experts import silences
from tests.support.forks import fork
from tests.support.launch import python
from tests.support.trained import trained_run


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with two sparse layers in the encoder and one in the decoder."""
    folder = tmp_path_factory.mktemp("zero_experts")
    return trained_run(
        folder,
        data=corpus,
        model={"num_layers": 2, "num_decoder_layers": 1, "sparse_step": 1, "initializer_scale": 1.0},
        training={"steps": 2, "eval_every": 2, "eval_examples": 16, "save_every": 2},
    )


def test_every_layer_every_stack_and_all_are_silent_in_turn():
    assert silences(["encoder_1", "encoder_3", "decoder_1"]) == {
        "encoder_1": ("encoder_1",),
        "encoder_3": ("encoder_3",),
        "decoder_1": ("decoder_1",),
        "the encoder": ("encoder_1", "encoder_3"),
        "all": ("encoder_1", "encoder_3", "decoder_1"),
    }
    assert silences(["decoder_0"]) == {"decoder_0": ("decoder_0",)}


def evaluate_with_zero_weights(run_dir: Path, layers: tuple[str, ...], out: Path) -> None:
    """Write the cross-entropy of the run's model after its layers' ``w2`` are set to 0."""
    import torch

    from training.export import weights
    from training.reevaluate import Change, reevaluate

    read = weights.read_model

    def without_output(*args: Any, **kwargs: Any) -> Any:
        model = read(*args, **kwargs)
        for layer in layers:
            stack, _, block = layer.partition("_")
            with torch.no_grad():
                model.get_parameter(f"{stack}.blocks.{block}.feed_forward.experts.w2").zero_()
        return model

    weights.read_model = without_output
    out.write_text(json.dumps(reevaluate(run_dir, [Change()])[0]["cross_entropy"]))


def test_silent_experts_are_experts_whose_output_matrices_are_zero(trained: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    result = python("-m", "studies.zero_experts", str(trained), "--rows", str(rows))
    assert result.returncode == 0, result.stderr[-3000:]
    (row,) = map(json.loads, rows.read_text().splitlines())
    recorded = json.loads((trained / "summary.json").read_text())["validation_cross_entropy"]
    assert row["cross_entropy"] == pytest.approx(recorded, abs=1e-6)
    for label, layers in {"encoder_1": ("encoder_1",), "all": ("encoder_0", "encoder_1", "decoder_0")}.items():
        out = tmp_path / label
        process = fork(evaluate_with_zero_weights, trained, layers, out)
        process.join(120)
        assert process.exitcode == 0
        whole = row["cross_entropy"] + row["costs"][label]
        assert whole == pytest.approx(json.loads(out.read_text()), abs=1e-5)
        assert abs(row["costs"][label]) > 1e-5  # the layer does something
        assert f"| {label} | {whole:.4f} |" in result.stdout


def test_mistakes_are_one_line(trained: Path, tmp_path: Path):
    for folder, reason in ((tmp_path / "none", "no such folder"),):
        result = python("-m", "studies.zero_experts", str(trained), str(folder))
        assert (result.returncode, result.stdout) == (2, "")  # before the first run is evaluated
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and reason in line
