"""The parallel layout that a plan is made for: how many GPUs, and how a configuration is spread over them.

``checked_layout`` is the one check of a cluster that is not there: plans, searches and dry runs refuse the same.
"""

from dataclasses import dataclass
from typing import Literal

from common.text import either, neighbours
from data.streaming.schedule import check_streams
from training.config.checks import check_all_to_all, check_expert_parallel, check_layout
from training.config.deepspeed import accumulation_steps, read_deepspeed_file, zero_stage
from training.config.errors import ConfigError
from training.config.run import RunConfig


@dataclass(frozen=True)
class Layout:
    """A layout; ``Layout.of`` gives that of a configuration, ``dataclasses.replace`` varies it.

    What a layout does not hold (the rest of DeepSpeed's options, dtypes of gradients, trainable parameters) is the
    configuration's.
    """

    gpus: int  # the world size
    gpus_per_node: int
    expert_parallel_size: int
    zero_stage: int  # 0 to 3
    micro_batch_size: int  # sequences per GPU and forward pass
    accumulation: int  # micro-batches per GPU and step
    recompute: bool  # of blocks in the backward pass: ``training.activation_checkpointing``
    precision: Literal["fp32", "bf16", "bf16_autocast"]
    all_to_all_chunks: int = 1

    @classmethod
    def of(cls, config: RunConfig, gpus: int, gpus_per_node: int = 8) -> "Layout":
        """Return the layout of a configuration on ``gpus`` GPUs.

        Raises:
            ConfigError: experts or batch cannot be spread over so many GPUs, or the DeepSpeed file is broken.
        """
        check_expert_parallel(config, gpus)
        options = read_deepspeed_file(config.training.deepspeed_config)
        return cls(
            gpus=gpus,
            gpus_per_node=gpus_per_node,
            expert_parallel_size=config.parallel.expert_parallel_size,
            zero_stage=zero_stage(options),
            micro_batch_size=config.training.micro_batch_size,
            accumulation=accumulation_steps(config, gpus),
            recompute=config.training.activation_checkpointing,
            precision=config.training.precision,
            all_to_all_chunks=config.parallel.all_to_all_chunks,
        )

    @property
    def nodes(self) -> int:
        """Nodes; one that is not full if GPUs are few."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def expert_replicas(self) -> int:
        """Copies of the experts: ranks of an expert-data-parallel group."""
        return self.gpus // self.expert_parallel_size

    @property
    def experts_within_node(self) -> bool:
        """Whether no expert-parallel group, which is of consecutive ranks, leaves a node."""
        return self.gpus <= self.gpus_per_node or self.gpus_per_node % self.expert_parallel_size == 0

    @property
    def global_batch_size(self) -> int:
        """Sequences per step, over all GPUs."""
        return self.gpus * self.micro_batch_size * self.accumulation


def checked_layout(config: RunConfig, gpus: int, gpus_per_node: int, *, option: str = "--gpus") -> Layout:
    """Return the layout of a configuration that ``train.py`` accepts on such a cluster.

    What the machine of the run must have (CUDA, a compiler, packages) is not looked for here.

    Args:
        config: of the run.
        gpus: the world size; if they are fewer than a node has, they are one node.
        gpus_per_node: of all other nodes.
        option: of the command line, that gives the number of GPUs.

    Raises:
        ValueError: one line; it would be refused.
    """
    check_nodes(gpus, gpus_per_node, option)
    check_layout(config, gpus, here=False, option=option)
    check_all_to_all(config, min(gpus, gpus_per_node))
    check_streams(config.data, gpus)
    return Layout.of(config, gpus, gpus_per_node)


def check_nodes(gpus: int, gpus_per_node: int, option: str) -> None:
    """Check that no node has fewer GPUs than the others. Raises ConfigError; arguments as of ``checked_layout``."""
    if gpus > gpus_per_node and gpus % gpus_per_node:
        near = neighbours(gpus, range(gpus_per_node, gpus + gpus_per_node, gpus_per_node))
        raise ConfigError(
            f"{option} {gpus} is not a multiple of the {gpus_per_node} GPUs of a node: set {option} {either(near)}, or "
            "another --gpus-per-node"
        )
