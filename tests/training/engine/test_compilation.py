"""Compiled blocks train as blocks that are not compiled."""

import sys
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch._dynamo.utils import counters

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration
from tests.support.ranks import run_ranks
from tests.support.small import SMALL_MODEL, global_batch, small_config
from training.engine import build
from training.engine.compilation import compile_blocks
from training.engine.step import evaluate, update


@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_are_compiled_and_keep_the_names_of_their_parameters(autocast: bool) -> None:
    config = StMoeConfig(**SMALL_MODEL | {"second_policy": "all", "num_layers": 2, "sparse_step": 2})
    results = []
    torch._dynamo.reset()  # graphs of other tests
    for compiled in (False, True):
        model = StMoeForConditionalGeneration(config).train()
        initialize_weights(model, config, seed=0)
        if compiled:
            counters.clear()
            compile_blocks(model, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = model(**global_batch(0, 4))
        output.loss.backward()
        results.append((output.loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    # Of a dense block one, of a sparse one what is before and what is after its sparse layer; of encoder and decoder.
    assert counters["stats"]["unique_graphs"] == 6
    assert all("SparseFeedForward.forward" in reason for reason in counters["graph_break"])
    if autocast:  # compiled products round elsewhere
        assert float(results[1][0]) == pytest.approx(float(results[0][0]), rel=1e-2)
        return
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_gradients, gradients)


def train(folder: str, cases: list[tuple[int, str, bool]]) -> list[dict[str, Any]]:
    """Losses of four updates and an evaluation on two expert-parallel ranks, by case without and with compilation."""
    results = []
    rank = dist.get_rank()
    for stage, precision, checkpointing in cases:
        for compiled in (False, True):
            options = {"precision": precision, "activation_checkpointing": checkpointing, "compile": compiled}
            config = small_config(
                Path(folder),
                zero_stage=stage,
                model={"num_layers": 2, "sparse_step": 2},
                parallel={"expert_parallel_size": 2},
                training=options,
            )
            engine = build.build_engine(config, 2, "cpu")
            losses = []
            for step in range(4):
                micro = [{k: v[4 * rank : 4 * rank + 4] for k, v in global_batch(step, 8).items()}]
                terms, _ = update(engine, micro, 0, 0, step, rank)
                losses.append(terms.reduce(config.st_moe_config())["loss"])
            losses.append(evaluate(engine, micro, 0, 0, rank).reduce(config.st_moe_config())["loss"])
            results.append({"losses": losses})
    return results


@pytest.mark.long  # minutes: inductor compiles C++. Its short form is the test above.
@pytest.mark.distributed
def test_compiled_training_equals_eager_at_every_stage(tmp_path: Path) -> None:
    cases = [(1, "fp32", False), (2, "fp32", True), (0, "bf16_autocast", False), (1, "bf16", False)]
    for found in run_ranks(train, 2, tmp_path, str(tmp_path), cases):
        for (_, precision, _), eager, compiled in zip(cases, found[::2], found[1::2], strict=True):
            tolerance = 1e-5 if precision == "fp32" else 2e-3
            assert compiled["losses"] == pytest.approx(eager["losses"], rel=tolerance)


def compilers_after_building(folder: str) -> list[str]:
    """Compilers that are imported when an engine has been built: of torch, and of C for DeepSpeed's operations."""
    build.build_engine(small_config(Path(folder)), 1, "cpu")
    return [name for name in ("torch._inductor.compile_fx", "setuptools") if name in sys.modules]


def test_an_engine_without_compilation_imports_no_compiler(tmp_path: Path) -> None:
    assert run_ranks(compilers_after_building, 1, tmp_path, str(tmp_path)) == [[]]
