"""Every gating trains the real ``configs/tiny.yaml`` under the real launcher: ``pytest -m long``."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import ROOT, launch

STEPS = 50
KINDS: dict[str, list[str]] = {
    "top_1": ["model.top_n=1"],
    "top_2": ["model.top_n=2"],
    "top_3": ["model.top_n=3"],
    "flaxformer": ["model.gating=flaxformer"],
    "batch_prioritized": ["model.batch_prioritized=true"],
    "expert_choice": ["model.gating=expert_choice"],
    "dropless": ["model.capacity=dropless"],
}


@pytest.mark.distributed
@pytest.mark.long  # 14 launches of 50 steps: a minute each kind; tests/parallel/test_gating_parity.py is the short form
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_gating_trains_tiny_on_two_ranks(kind: str, tmp_path: Path):
    if not (ROOT / "runs/data/wikipedia/vocabulary").is_dir():
        pytest.skip("needs the quickstart's data: bash launch/quickstart.sh")
    runs: dict[int, list[dict[str, Any]]] = {}
    for stage in (1, 3):
        result = launch(
            ROOT / "configs/tiny.yaml", f"training.output_dir={tmp_path}", f"training.name=zero{stage}",
            f"training.deepspeed_config=ds_configs/zero{stage}.json", f"training.steps={STEPS}",
            "training.log_every=1", "parallel.expert_parallel_size=2", *KINDS[kind],
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        lines = (tmp_path / f"zero{stage}" / "metrics.jsonl").read_text().splitlines()
        runs[stage] = [row for row in map(json.loads, lines) if row["split"] == "train"]
        last = runs[stage][-1]
        print(f"{kind} ZeRO {stage}: loss {last['loss']:.6f}, dropped fraction {last['dropped_fraction']:.4f}")
        assert [row["step"] for row in runs[stage]] == list(range(1, STEPS + 1))
        assert all(math.isfinite(row["loss"]) for row in runs[stage])
        assert last["cross_entropy"] < runs[stage][0]["cross_entropy"] - 0.5
        assert kind != "dropless" or all(row["dropped_fraction"] == 0 for row in runs[stage])
    for one, three in zip(runs[1], runs[3], strict=True):
        # Routing is discrete: sooner or later a rounding error of 1e-7 changes the expert of a token.
        assert one["loss"] == pytest.approx(three["loss"], rel=1e-5 if one["step"] <= 30 else 1e-2)
