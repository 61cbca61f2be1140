"""No number that is not finite gets into a checkpoint, or out of one."""

import math
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch

from tests.support.checkpoints import write_capture
from tests.support.ranks import run_ranks
from tests.support.small import small_config
from tests.training.test_adafactor_ranks import ADAFACTOR, micro_batches, small
from training.checkpoint.capture import Moment
from training.checkpoint.finite import NotFiniteError, not_finite, weights_not_finite
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.saver import Saver
from training.config.errors import ConfigError
from training.engine.build import build_engine
from training.engine.parameters import engine_partitions
from training.engine.step import update
from training.run.folder import RunFolder

NOT_FINITE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_place_and_kind_is_found(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    good = {
        "ones": torch.ones(5, dtype=dtype), "number": torch.tensor(2.0, dtype=dtype),
        "none": torch.ones(0, dtype=dtype), "steps": torch.tensor([2**62]),
        "a sum that overflows": torch.full((9,), largest, dtype=dtype),
        "matrix": torch.full((3, 2), -largest, dtype=dtype),
    }  # fmt: skip
    assert not_finite(good) == []
    for value in NOT_FINITE:
        for place in range(5):
            bad = torch.ones(5, dtype=dtype)
            bad[place] = value
            both = torch.tensor([math.inf, -math.inf], dtype=dtype)
            assert not_finite(good | {"bad": bad, "both": both, "alone": bad[place]}) == ["bad", "both", "alone"]


def test_a_checkpoint_that_is_not_finite_is_refused_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    config = small_config(tmp_path)
    write_capture(config, 2)
    drawn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **options: drawn(*size, **options) / 0)
    write_capture(config, 4)
    assert read_checkpoint(config.run_dir).state.step == 2
    (said,) = caplog.messages
    assert said.startswith("checkpoint refused: step_00000004: ")
    assert "holds numbers that are not finite: a/" in said
    write_capture(config, 2)
    with pytest.raises(ConfigError, match="no intact checkpoint"):
        read_checkpoint(config.run_dir)


def save_poisoned(folder: str) -> list[str]:
    """What a save says when one number of one rank is not finite: a weight of its own expert, or optimizer state."""
    said = []
    for stage, name, precision in ((1, "adafactor", "fp32"), (3, "adafactor", "fp32"), (0, "adamw", "bf16")):
        options: dict[str, Any] = {
            "optimizer": ADAFACTOR if name == "adafactor" else {"name": "adamw"},
            "precision": precision,
        }
        config = small(folder, {"stage": stage}, 2, name=f"{stage}", **options)
        engine = build_engine(config, dist.get_world_size(), "cpu")
        update(engine, micro_batches(0), 0, 0, 0, dist.get_rank())
        saver = Saver(config, "cpu")
        moment = Moment(
            1, 9, {"identity": {}, "next_example": 0, "streams": {str(dist.get_rank()): {}}}, {}, None, 0, {}
        )
        saver.start(engine, moment)
        saved = saver.wait()
        assert saved is not None and saved.error is None
        assert weights_not_finite(engine) == []
        weights = next(
            segment.view(partition.tensor.detach().view(-1))
            for partition in engine_partitions(engine)
            for segment in partition.held()
            if segment.spec.name.endswith("experts.w2")
        )
        optimizer = engine.basic_optimizer
        state = (
            next(t for n, t in optimizer.named_state().items() if "experts.w2" in n and t.is_floating_point())
            if name == "adafactor"
            else optimizer.state[engine_partitions(engine)[-1].tensor]["exp_avg_sq"].view(-1)
        )
        for poisoned in (weights, state):
            good = poisoned.view(-1)[-1].item()
            if dist.get_rank() == 1:
                poisoned.view(-1)[-1] = math.nan
            try:
                saver.start(engine, moment)
                said.append("saved")
                saver.wait()
            except NotFiniteError as error:
                said.append(f"{error.code} {error}")
            poisoned.view(-1)[-1] = good
        said.append(" ".join(sorted(path.name for path in RunFolder(config.run_dir).checkpoints.iterdir())))
    return said


@pytest.mark.distributed
def test_all_ranks_refuse_to_save_what_is_not_finite_on_one(tmp_path: Path):
    first, second = run_ranks(save_poisoned, 2, tmp_path, str(tmp_path))
    assert first == second
    for number, line in enumerate(first):
        if number % 3 == 2:
            assert line == "latest step_00000001"
        else:
            assert line.startswith("3 weights or optimizer state are not finite at step 1: ")
    assert all(".experts.w2/weight" in line for line in first[::3])
    states = ("experts.w2/", "experts.w2/", "/exp_avg_sq")
    for state, line in zip(states, first[1::3], strict=True):
        assert state in line
        assert "/weight" not in line
