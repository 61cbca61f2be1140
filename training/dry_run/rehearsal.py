"""Builds the engine of a rank that is not there, and makes one step of training with it."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.config.deepspeed import accumulation_steps, read_deepspeed_file, zero_stage
from training.config.run import RunConfig
from training.dry_run.fake_rank import Collective, FakeRank
from training.dry_run.measured import gradient_bytes
from training.engine.build import build_engine
from training.engine.clock import Clock
from training.engine.step import update
from training.planning.cost import example_lengths
from training.run.process import Process

FEW_BYTES = 64  # outside of the update of weights, messages up to this size are norms and counts
START, FORWARD, BACKWARD, OPTIMIZER, UPDATE = "start", "forward", "backward", "optimizer", "update"


@dataclass(frozen=True)
class Step:
    """The collectives of one step of training."""

    first: list[Collective]  # of a micro-batch whose gradients are only added up; empty if a step has one micro-batch
    last: list[Collective]  # of the last micro-batch, and of the optimizer
    accumulation: int  # micro-batches of a step
    gradients: int  # bytes of gradients when its last backward pass had ended

    def bytes(self) -> Counter[tuple[str, int]]:
        """Return the bytes of a step by kind and ranks of the group, norms and counts left out."""
        total: Counter[tuple[str, int]] = Counter()
        for one, times in self.all():
            if len(one.ranks) > 1 and (one.nbytes > FEW_BYTES or one.phase == UPDATE):
                total[one.kind, len(one.ranks)] += one.nbytes * times
        return total

    def all(self) -> Iterator[tuple[Collective, int]]:
        """Yield each collective, and how often a step makes it."""
        yield from ((one, self.accumulation - 1) for one in self.first)
        yield from ((one, 1) for one in self.last)


class Phases(Clock):
    """Tells the fake rank which phase of a step begins."""

    def __init__(self, engine: Any, rank: FakeRank):
        super().__init__(engine.module, "cpu")
        self.engine, self.rank = engine, rank
        self.gradients = 0  # bytes of gradients when the last backward pass had ended

    @contextlib.contextmanager
    def phase(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Run a phase of the step."""
        self.rank.enter(name)
        if name == OPTIMIZER:
            self.gradients = gradient_bytes(self.engine)
        with super().phase(name, host=host):
            yield


def rehearse(config: RunConfig, process: Process, rank: FakeRank, tell: Callable[[str], None]) -> tuple[Any, Step]:
    """Return the engine of a rank after a step of training, and the step.

    All micro-batches of a step but the last are alike, so one of them is made; before it, under ZeRO 3, another, which
    is not like those that follow: DeepSpeed notes in it what is gathered when, and gathers small parameters for good.

    Args:
        config: of the run.
        process: the rank.
        rank: the context, entered.
        tell: is called with what begins now.
    """
    accumulation = accumulation_steps(config, process.world_size)
    warm = int(zero_stage(read_deepspeed_file(config.training.deepspeed_config)) == 3)
    passes = warm + min(accumulation, 2)
    rank.enter(START)
    tell(f"building rank {process.rank:,} of {process.world_size:,}")
    engine = build_engine(_with_passes(config, passes, process.world_size), process.world_size, "cpu", initialize=False)
    engine.basic_optimizer.register_step_pre_hook(lambda *_: rank.enter(UPDATE))
    engine.basic_optimizer.register_step_post_hook(lambda *_: rank.enter(OPTIMIZER))
    size, lengths = config.training.micro_batch_size, example_lengths(config.data)
    made: list[list[Collective]] = []
    for number in range(passes):
        if number and number == warm:
            small = engine.optimizer.persistent_parameters
            if small:
                small[0].all_gather(small)  # as at the end of every step
        tell(f"pass {number + 1} of {passes}, without numbers: forward, backward, optimizer")
        before = len(rank.collectives)
        phases = Phases(engine, rank)
        update(engine, [_batch(size, *lengths)], 0, number, clock=phases)
        made.append(rank.collectives[before:])
    return engine, Step(made[warm] if accumulation > 1 else [], made[-1], accumulation, phases.gradients)


def _with_passes(config: RunConfig, passes: int, world_size: int) -> RunConfig:
    """Return the configuration with so many micro-batches in a step, and blocks that are not compiled."""
    t = config.training
    chosen = {"global_batch_size": passes * t.micro_batch_size * world_size, "compile": False}
    return config.model_copy(update={"training": t.model_copy(update=chosen)})


def _batch(sequences: int, inputs: int, targets: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.ones(sequences, inputs, dtype=torch.int64),
        "labels": torch.ones(sequences, targets, dtype=torch.int64),
    }
