"""To watch a run changes none of its numbers and, until a row is written, makes the host wait for nothing more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import StMoeConfig
from model.moe.router import route
from model.moe.statistics import BINS, SUMS, router_statistics
from tests.support.compare_runs import last_tensors
from tests.support.launch import rows, train
from tests.support.launches import HOST_READS
from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.engine.build import build_engine
from training.engine.clock import Clock
from training.engine.step import update
from training.monitoring.columns import MEASURED, undeclared
from training.monitoring.monitors.families import FamilySizes

OFF = tuple(f"training.monitor.{key}" for key in ("routing=false", "pictures=false", "examples=0"))
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


class Operators(TorchDispatchMode):
    """Counts operators that read a value."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func._schema.name.partition("::")[2] in HOST_READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_reads() -> Iterator[dict[str, int]]:
    """Count what on a device would wait for it: methods that give Python a number, and operators that do."""
    counts: dict[str, int] = {}
    originals = {name: getattr(torch.Tensor, name) for name in READS}

    def counting(name: str) -> Any:
        def method(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return originals[name](tensor, *args, **options)

        return method

    for name in READS:
        setattr(torch.Tensor, name, counting(name))
    try:
        with Operators() as operators:
            yield counts
        counts["operators"] = operators.reads
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


def reads_of_steps(folder: str) -> list[list[dict[str, int]]]:
    """For each optimizer, the reads of a step: not watched, watched but not logged, logged (until its row)."""
    found = []
    for optimizer in ({"name": "adafactor", "learning_rate": 1e-2}, {"name": "adamw", "learning_rate": 1e-3}):
        config = small_config(
            Path(folder), optimizer=optimizer, model={"second_policy": "all", "num_layers": 2, "sparse_step": 2}
        )
        engine = build_engine(config, 1, "cpu")
        batches = [{name: part[i : i + 4] for name, part in global_batch(0, 8).items()} for i in (0, 4)]
        update(engine, batches, 0, 0, 0, 0)
        of_optimizer = []
        for watched, logged in ((False, False), (True, False), (True, True)):
            sizes = FamilySizes(engine, 0.0) if watched else None
            clock = Clock(engine.module, "cpu") if watched else None
            if sizes is not None:
                sizes.begin_step(logged=logged)
            with counted_reads() as counts:
                terms, _ = update(engine, batches, 0, 0, 1, 0, clock=clock, observed=logged)
            assert bool(terms.routers) == logged
            if sizes is not None:
                sizes.close()
            of_optimizer.append(counts)
        found.append(of_optimizer)
    return found


def test_the_host_reads_nothing_more(tmp_path: Path):
    for unwatched, watched, logged in run_ranks(reads_of_steps, 1, tmp_path, str(tmp_path))[0]:
        assert unwatched["operators"] > 0  # of DeepSpeed: reads are seen
        assert watched == unwatched
        assert logged == unwatched


@pytest.mark.parametrize("options", [{}, {"gating": "flaxformer"}, {"top_n": 3}, {"batch_prioritized": True}])
def test_statistics_of_a_router_need_no_value_on_the_host(options: dict[str, Any]):
    config = StMoeConfig(num_experts=4, d_model=8, **options)
    with FakeTensorMode():  # any read of a value is an error
        logits, mask = torch.randn(2, 16, 4), torch.ones(2, 16, dtype=torch.bool)
        routing = route(logits, mask, config, training=True)
        assert router_statistics(logits, mask, routing, 40).shape == (len(SUMS) + 4 + BINS + 1,)


@pytest.mark.distributed
def test_numbers_are_the_same_to_the_bit(corpus: dict[str, Any], tmp_path: Path):
    config = small_config(
        tmp_path,
        data=corpus,
        parallel={"expert_parallel_size": 2},
        model={"dropout_rate": 0.1, "second_threshold": 0.9},
        training={
            "steps": 6, "micro_batch_size": 2, "log_every": 2, "eval_every": 3, "eval_examples": 16, "save_every": 6,
        },
    )  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    for name, overrides in (("on", ()), ("off", OFF)):
        run = train(file, f"training.name={name}", *overrides, ranks=2)
        assert run.returncode == 0, run.stderr[-3000:]
    on, off = (rows(tmp_path / "runs" / name) for name in ("on", "off"))
    routing = [row for row in on if row.get("split") == "routing"]
    assert [row["step"] for row in routing] == [3, 6]  # of the steps 2, and 4 and 6
    assert [len(row["load/encoder_3"]) for row in routing] == [4, 4]
    assert [undeclared(row) for row in on + off if undeclared(row)] == []
    for watched, plain in zip((row for row in on if row.get("split") != "routing"), off, strict=True):
        for key, value in plain.items():
            assert MEASURED.fullmatch(key) or watched[key] == value, (plain["step"], key)
    for watched, plain in zip(*([r for r in run if r.get("split") == "train"] for run in (on, off)), strict=True):
        assert "router_entropy/decoder_3" in watched and not any("/" in key for key in plain)
    assert last_tensors(tmp_path / "runs" / "on") == last_tensors(tmp_path / "runs" / "off")
