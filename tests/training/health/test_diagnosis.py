"""What is said of a step that is not finite names the layer."""

from pathlib import Path

import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.engine.batches import total_over_ranks
from training.engine.build import build_engine
from training.health.diagnosis import diagnose

LATER = "decoder.blocks.3.feed_forward.router"  # of two sparse layers, so the first one is not named


def _diagnose(folder: str, trainable: str) -> list[str]:
    engine = build_engine(small_config(Path(folder), training={"trainable": trainable}), 1, "cpu")
    batch = {name: tensor[:4] for name, tensor in global_batch(0, 8).items()}
    divisors = total_over_ranks([batch], 0).divisors
    said = [diagnose(engine, batch, divisors, 0, 0, 0)]
    with torch.no_grad():
        engine.module.get_submodule(LATER).weight[1, 2] = float("nan")
    return [*said, diagnose(engine, batch, divisors, 0, 0, 0)]


@pytest.mark.parametrize("trainable", ["all", "attention"])
def test_the_router_and_the_gradients_are_named(tmp_path: Path, trainable: str):
    healthy, ill = run_ranks(_diagnose, 1, tmp_path, str(tmp_path), trainable)[0]
    assert healthy == (
        "not finite among router logits: none; not finite among weights: none; not finite among gradients: none"
    )
    routers, _, gradients = ill.split("; ")
    assert routers == f"not finite among router logits: {LATER}"
    assert gradients.startswith("not finite among gradients: decoder.blocks.0.")
    assert " more" in gradients
