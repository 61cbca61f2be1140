"""What a step takes, predicted: compute, kernel launches, communication that GPUs wait for, the optimizer."""

from collections.abc import Mapping
from typing import NamedTuple

from training.config.run import RunConfig
from training.planning.gathers import gather
from training.planning.groups import ZeroOptions, held_parameters
from training.planning.layout import Layout
from training.planning.traffic import Kind

# What the host needs to launch the kernels of a block, however few tokens they work on: measured were 103 ms for the
# forward and 207 ms for the backward pass of the 48 blocks of ST-MoE-L on an H100, in 3,300 launches, and no less for
# an eighth of the micro-batch (benchmarks/README.md).
FORWARD_LAUNCHES, BACKWARD_LAUNCHES, LAUNCH = 0.103 / 48, 0.207 / 48, 0.310 / 3300
# The optimizer's step of Adafactor, on the same GPU: 45 ms for 1.2 billion parameters.
STEP_OF_PARAMETER = 0.045 / 1.198e9


class Parts(NamedTuple):
    """Seconds of a step. Compute and launches overlap; all else follows them."""

    compute: float
    launches: float  # of kernels, by the host
    communication: float  # that GPUs wait for
    optimizer: float

    @property
    def passes(self) -> float:
        """Of the forward and backward passes, without communication."""
        return max(self.compute, self.launches)

    @property
    def together(self) -> float:
        """Of the step."""
        return self.passes + self.communication + self.optimizer


def parts_of(config: RunConfig, layout: Layout, compute: float, links: Mapping[Kind, float]) -> Parts:
    """Return the parts of a step.

    - A micro-batch takes the longer of its compute (with the FLOPs of recomputation) and the host's launches, under
      ZeRO 3 with at least one more for every parameter that is gathered.
    - Nothing else can be done during the all-to-all but, with chunks, the experts of another chunk.
    - Gradients are reduced, and under ZeRO 3 weights are gathered, while passes compute where the DeepSpeed file says
      ``overlap_comm`` (ZeRO 2 and 3): what takes longer than the passes is waited for.
    - Otherwise, and for the weights that ZeRO 1 and 2 gather after the optimizer's step, GPUs wait.
    - The optimizer steps the parameters of a GPU's partition, without ZeRO all that it holds.

    Args:
        config: the run's.
        layout: the parallel layout.
        compute: seconds of a step.
        links: seconds of a step in which the links of a GPU are busy, by kind.
    """
    model, overlaps = config.architecture(), False
    assert model.num_decoder_layers is not None
    of_block = (1 + layout.recompute) * FORWARD_LAUNCHES + BACKWARD_LAUNCHES
    launches = of_block * (model.num_layers + model.num_decoder_layers)
    during, after = links["all_reduce"] + links["reduce_scatter"], links["all_gather"]
    if layout.zero_stage == 3:
        launches += LAUNCH * len(gather(config, layout).in_micro_batch)
        during, after = during + after, 0.0
    if layout.zero_stage >= 2:
        overlaps = ZeroOptions.of(config, layout).overlap
    launches *= layout.accumulation
    waits = after + (max(0.0, during - max(compute, launches)) if overlaps else during)
    trained = [one for one in held_parameters(config, layout) if one.trained]
    stepped = sum(one.partition_numel if layout.zero_stage else one.numel for one in trained)
    return Parts(
        compute=compute,
        launches=launches,
        communication=waits + links["all_to_all"] / layout.all_to_all_chunks,
        optimizer=STEP_OF_PARAMETER * stepped,
    )
