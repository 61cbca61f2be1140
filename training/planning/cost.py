"""What a run costs, from its configuration alone: parameters, and FLOPs of an example and of a token."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

from data.config import DataConfig
from data.span_corruption import raw_and_target_lengths
from model.flops import equal_flops_width, forward_flops
from model.size import count_parameters
from training.config.run import RunConfig

MULTIPLES = (8, 4, 2)  # of widths of equal FLOPs, the best for matrix products first


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs of a model on the examples of a run."""

    inputs: int  # encoder positions of an example
    targets: int  # decoder positions of an example
    forward_flops: float  # of an example, counted as ``model.flops`` does, with the training capacity
    training_flops: float  # of an example, forward and backward
    parameters_total: int
    parameters_active: int  # for one token

    @property
    def training_flops_of_token(self) -> float:
        """Forward and backward FLOPs per position, encoder and decoder together."""
        return self.training_flops / (self.inputs + self.targets)

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {**asdict(self), "training_flops_of_token": self.training_flops_of_token}


def example_lengths(config: DataConfig) -> tuple[int, int]:
    """Return encoder and decoder positions of an example, padding included."""
    if config.objective == "tasks":
        return config.inputs_length, config.targets_length
    if config.objective == "prefix_lm":
        return config.inputs_length, config.inputs_length - 1
    _, targets = raw_and_target_lengths(config.inputs_length, config.noise_density, config.mean_noise_span_length)
    return config.inputs_length, targets


def cost_of(config: RunConfig) -> Cost:
    """Count what a run costs; allocates no model."""
    model, sequences = config.architecture(), config.training.micro_batch_size
    inputs, targets = example_lengths(config.data)
    flops = forward_flops(model, sequences, inputs, targets)
    total, active = count_parameters(model)
    return Cost(inputs, targets, flops.total / sequences, flops.training() / sequences, total, active)


def width_of_equal_flops(config: RunConfig, reference: RunConfig) -> int:
    """Return the ``model.d_ff`` with which an example costs a run as many FLOPs as it costs a reference, within 1 %.

    Both are counted for the examples of ``config``. It is a multiple of 8 or, where none is near enough, of 4 or 2.

    Raises:
        ValueError: see ``model.flops.equal_flops_width``.
    """
    sequences, lengths = config.training.micro_batch_size, example_lengths(config.data)
    wanted = forward_flops(reference.architecture(), sequences, *lengths).total
    for multiple in MULTIPLES[:-1]:
        with contextlib.suppress(ValueError):
            return equal_flops_width(config.architecture(), wanted, sequences, *lengths, multiple=multiple)
    return equal_flops_width(config.architecture(), wanted, sequences, *lengths, multiple=MULTIPLES[-1])
