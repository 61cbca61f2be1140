"""Sizes of gradients, weights and updates by family equal those of a plain model, at any layout."""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

from model.initialization import initialize_weights
from model.losses import IGNORED_LABEL, LossDivisors
from model.st_moe import StMoeForConditionalGeneration
from optim.build import build_optimizer
from optim.schedule import make_schedule
from tests.support.ranks import run_ranks
from tests.support.small import global_batch
from tests.training.test_adafactor_ranks import micro_batches, small
from training.config.run import RunConfig
from training.engine.build import build_engine
from training.engine.parameters import model_parameter_specs, parameter_families
from training.engine.step import update
from training.monitoring.monitors.families import FamilySizes

STEPS, CLIPPING = 3, 0.5
ADAMW = {"name": "adamw", "learning_rate": 1e-3, "gradient_clipping": CLIPPING, "weight_decay": 0.1}
ADAFACTOR = {"learning_rate": 2e-2, "min_dim_size_to_factor": 16, "gradient_clipping": CLIPPING}
LAYOUTS = [({"stage": 0}, 2), ({"stage": 1}, 2), ({"stage": 2}, 1), ({"stage": 3, "sub_group_size": 5000}, 2)]


def train(config: RunConfig) -> dict[str, Any]:
    """Figures of the last of three steps."""
    engine = build_engine(config, dist.get_world_size(), "cpu")
    sizes = FamilySizes(engine, CLIPPING)
    for step in range(STEPS):
        sizes.begin_step(logged=step == STEPS - 1)
        update(engine, micro_batches(step), 0, 0, step, dist.get_rank())
        assert bool(sizes.figures()) == (step == STEPS - 1)
    return sizes.figures()


def train_all(folder: str) -> list[dict[str, Any]]:
    configs = [
        *(small(folder, zero, size, optimizer=ADAMW) for zero, size in LAYOUTS),
        small(folder, {"stage": 1}, 2, optimizer=ADAMW, precision="bf16"),
        small(folder, {"stage": 1}, 2, optimizer=ADAFACTOR),
    ]
    return [train(config) | {"adafactor": config.optimizer.name == "adafactor"} for config in configs]


def reference(folder: str, optimizer: dict[str, Any]) -> dict[str, float]:
    """The same figures of a plain model: its gradients, its weights, and by how much a step changes them."""
    config = small(folder, {"stage": 1}, 1, optimizer=optimizer)
    model = StMoeForConditionalGeneration(config.st_moe_config()).train()
    initialize_weights(model, config.st_moe_config(), config.training.seed)
    stepped = build_optimizer(model_parameter_specs(model), config.optimizer, model.get_input_embeddings().weight)
    schedule = make_schedule(stepped, config.optimizer, config.training.steps)
    families, figures = parameter_families(model), dict[str, float]()
    of_group = {p: group for group in stepped.param_groups for p in group["params"]}
    for step in range(STEPS):
        stepped.zero_grad()
        batch = global_batch(step, 8)
        real = [(batch["input_ids"] != 0).sum() / 2, (batch["labels"] != IGNORED_LABEL).sum() / 2]
        for half in (slice(0, 4), slice(4, 8)):
            part = {name: rows[half] for name, rows in batch.items()}
            (model(**part, loss_divisors=LossDivisors(*real)).loss / 2).backward()
        sums: dict[str, list[float]] = {}
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        rates = {p: (group["lr"], group["weight_decay"]) for p, group in of_group.items()}
        stepped.step()
        schedule.step()
        for name, p in model.named_parameters():
            rate, decay = rates[p]
            change = (before[name] * (1 - rate * decay) - p.detach().double()) / rate
            row = sums.setdefault(families[name], [0.0] * 4)
            for i, value in enumerate((p.numel(), norms[name] ** 2, squares(before[name]), squares(change))):
                row[i] += value
        figures = {}
        for family, (numel, gradients, weights, updates) in sums.items():
            figures[f"gradient_norm/{family}"] = gradients**0.5
            figures[f"parameter_rms/{family}"] = (weights / numel) ** 0.5
            figures[f"update_rms/{family}"] = (updates / numel) ** 0.5
    return figures


def squares(values: Tensor) -> float:
    return float(values.double().square().sum())


def references(folder: str) -> list[dict[str, float]]:
    return [reference(folder, optimizer) for optimizer in (ADAMW, ADAFACTOR)]


@pytest.mark.distributed
def test_sizes_equal_those_of_a_plain_model_at_every_layout(tmp_path: Path):
    of_adamw, of_adafactor = run_ranks(references, 1, tmp_path, str(tmp_path))[0]
    assert {name.partition("/")[2] for name in of_adamw} == {
        "embedding", "attention", "feed_forward", "experts", "router", "norm", "relative_bias", "head"
    }  # fmt: skip
    first, second = run_ranks(train_all, 2, tmp_path, str(tmp_path))
    for number, (figures, others) in enumerate(zip(first, second, strict=True)):
        assert figures == others
        adafactor, in_bf16 = figures["adafactor"], number == len(LAYOUTS)
        for name, value in (of_adafactor if adafactor else of_adamw).items():
            if adafactor and name.startswith("update_rms"):
                continue  # of Adafactor before its own scale: tests of test_adafactor_ranks
            assert figures[name] == pytest.approx(value, rel=0.05 if in_bf16 else 1e-3), (number, name)
        assert ("clipped_fraction/experts" in figures) == adafactor
