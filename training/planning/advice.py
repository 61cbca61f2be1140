"""The paper's advice on sparse models, and what the figures of a plan advise, as warnings."""

from collections.abc import Iterator

from common.text import counted
from training.config.run import RunConfig
from training.planning.cards import Card
from training.planning.display.units import SECONDS, told
from training.planning.groups import ZeroOptions
from training.planning.layout import Layout
from training.planning.times import Times

ADVISED_TOP_N = 2
ADVISED_CAPACITY = 1.25
PAPER = "Zoph et al. 2022"


def advise(config: RunConfig, layout: Layout, card: Card, times: Times) -> Iterator[str]:
    """Yield a line for each setting that the paper, or the plan's own figures, advise against."""
    model = config.architecture()
    if model.num_experts:
        yield from _of_routing(config)
        yield from _of_experts(config, layout, card)
    zero = ZeroOptions.of(config, layout)
    if zero.offload_optimizer or zero.offload_parameters:
        yield (
            f"training.deepspeed_config = {config.training.deepspeed_config} offloads to the host: times lack "
            "its transfers, and an optimizer's step on the host's processor, and so are too short"
        )
    if times.launches > times.compute:
        fix = "a larger training.micro_batch_size has fewer"
        if layout.accumulation == 1:
            fix = "try fewer GPUs with a larger training.micro_batch_size, or a larger training.global_batch_size"
        yield (
            f"a step is bound by kernel launches: the host needs {told(times.launches, SECONDS, 2)} for them, compute "
            f"takes {told(times.compute, SECONDS, 2)}; {fix}"
        )
    if times.communication > max(times.compute, times.launches):
        most = max(times.links, key=lambda kind: times.links[kind])
        yield (
            f"a step is bound by communication: GPUs wait for it {told(times.communication, SECONDS, 2)}, links are "
            f"busy for {told(times.links[most], SECONDS, 2)} with {most.replace('_', '-')}; compute takes "
            f"{told(times.compute, SECONDS, 2)}"
        )


def _of_routing(config: RunConfig) -> Iterator[str]:
    """Section 5.2 of the paper, "Choosing the capacity factor and routing algorithm"."""
    model = config.architecture()
    if {model.gating, model.decoder_gating} - {"expert_choice"} and model.top_n != ADVISED_TOP_N:
        yield f"model.top_n = {model.top_n}: {PAPER}, section 5.2, advises top-2 routing"
    if model.capacity == "factor" and model.train_capacity_factor != ADVISED_CAPACITY:
        more = model.train_capacity_factor > ADVISED_CAPACITY
        effect = "each slot costs compute and all-to-all" if more else "tokens without a slot pass their layer by"
        yield (
            f"model.train_capacity_factor = {model.train_capacity_factor}: {PAPER}, section 5.2, advises "
            f"{ADVISED_CAPACITY}; {effect}"
        )


def _of_experts(config: RunConfig, layout: Layout, card: Card) -> Iterator[str]:
    """Section 5.1, "Setting the number of experts"; that the all-to-all stays in a node, by the bandwidths."""
    model, size = config.architecture(), layout.expert_parallel_size
    if model.num_experts > layout.gpus:
        yield (
            f"model.num_experts = {model.num_experts} on {counted(layout.gpus, 'GPU')}: {PAPER}, section 5.1, advises "
            "at most one expert per core, so that reading their weights stays cheap beside their compute"
        )
    if size > 1 and not layout.experts_within_node:
        yield (
            f"parallel.expert_parallel_size = {size} leaves a node of {counted(layout.gpus_per_node, 'GPU')}: the "
            f"all-to-all travels at {card.network_gbs:g} GB/s per GPU instead of {card.node_gbs:g} GB/s"
        )
