"""A gradient that is not finite, on one rank alone, leaves the run as if the step had not been."""

import math
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

from optim.adafactor import Adafactor
from optim.parameter import parameter_specs
from optim.partition import whole
from optim.stage_zero import StageZero
from tests.support.optimizer import joined, master_weights
from tests.support.ranks import run_ranks
from tests.training.test_adafactor_ranks import micro_batches, small
from training.engine.build import build_engine
from training.engine.step import update
from training.monitoring.monitors.families import FamilySizes

BAD_STEP = 2
EXPERTS = "decoder.blocks.1.feed_forward.experts.w2"


def train(folder: str, stage: int, value: float | None, **options: Any) -> dict[str, Any]:
    """Four good steps and, if there is a ``value``, before the third a step in which one expert's gradient has it.

    With two expert-parallel ranks only one of them has that expert.
    """
    engine = build_engine(small(folder, {"stage": stage}, 2, **options), dist.get_world_size(), "cpu")
    poison = False

    def hook(gradient: Tensor) -> Tensor:
        return gradient * value if poison and dist.get_rank() == 1 and value is not None else gradient

    engine.module.get_parameter(EXPERTS).register_hook(hook)
    losses, figures = [], {}
    for step in range(4):
        if step == BAD_STEP and value is not None:
            poison = True
            sizes = FamilySizes(engine, 0.0)
            sizes.begin_step(logged=True)
            update(engine, micro_batches(99), 0, 0, 99, dist.get_rank())
            poison = False
            figures = {"applied": engine.was_step_applied(), "skipped": engine.skipped_steps}
            figures["metrics"] = len(sizes.figures())
        terms, _ = update(engine, micro_batches(step), 0, 0, step, dist.get_rank())
        losses.append(float(terms.means[0][0]))
    result = {"losses": losses, "rates": engine.get_lr(), "skipped": engine.skipped_steps, "bad": figures}
    if isinstance(engine.basic_optimizer, Adafactor):
        result |= {"weights": master_weights(engine.basic_optimizer), "state": engine.basic_optimizer.named_state()}
    return result


def train_all(folder: str) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Each kind of run without the bad step and with it."""
    results = []
    for stage in (0, 1, 2, 3):
        results.append((f"{stage}", train(folder, stage, None), [train(folder, stage, math.nan)]))
    results[0][2].append(train(folder, 0, math.inf))
    for stage in (0, 1):
        bad = train(folder, stage, math.nan, precision="bf16")
        results.append((f"bf16 {stage}", train(folder, stage, None, precision="bf16"), [bad]))
    return results


@pytest.mark.distributed
def test_the_step_is_skipped_on_all_ranks(tmp_path: Path):
    for rank in run_ranks(train_all, 2, tmp_path, str(tmp_path)):
        for name, good, bad_ones in rank:
            assert good["skipped"] == 0
            for bad in bad_ones:
                assert bad["bad"] == {"applied": False, "skipped": 1, "metrics": 0}, name
                assert bad["skipped"] == 1
                assert bad["losses"] == good["losses"], name
                assert bad["rates"] == good["rates"]
                for kind in ("weights", "state"):
                    assert joined([good[kind], bad[kind]]).keys() == good[kind].keys()
                assert all(tensor.isfinite().all() for tensor in bad["weights"].values())


def train_adamw(folder: str) -> list[dict[str, Any]]:
    adamw = {"name": "adamw", "gradient_clipping": 0.0, "learning_rate": 1e-3}
    return [train(folder, 0, value, optimizer=adamw) for value in (None, math.nan)]


@pytest.mark.distributed
def test_adamw_without_zero_skips_it_too(tmp_path: Path):
    for good, bad in run_ranks(train_adamw, 2, tmp_path, str(tmp_path)):
        assert bad["losses"] == good["losses"]
        assert (bad["bad"]["applied"], bad["skipped"]) == (False, 1)


def test_hook_alone():
    weights, expert = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))
    specs = parameter_specs([("weights", weights), ("expert", expert)])
    partitions = [whole(tensor, spec) for tensor, spec in specs.items()]
    optimizer = torch.optim.SGD([weights, expert], lr=1.0)
    optimizer.register_step_pre_hook(StageZero(optimizer, partitions, clipping=10.0))
    for value, moved in ((3.0, -2.0), (math.inf, -2.0), (math.nan, -2.0), (3.0, -5.0), (300.0, -11.0)):
        weights.grad, expert.grad = torch.tensor([0.0, value, 0.0]), torch.tensor([value * 4 / 3])
        optimizer.step()
        assert weights[1].item() == pytest.approx(moved)
        assert vars(optimizer)["overflow"] == (not math.isfinite(value))
        norm = vars(optimizer)["_global_grad_norm"]  # before clipping
        assert norm == pytest.approx(value * 5 / 3) or not math.isfinite(value + norm)
