"""The sparse feed-forward with its experts split over the ranks of an expert-parallel group.

``ExpertParallelFeedForward`` derives from the model's layer, which computes, and from DeepSpeed's ``AutoEPMoELayer``,
by which the engine recognizes it: the engine reduces expert gradients over the expert-data-parallel group, and ZeRO
partitions expert weights and their optimizer state over that group. ZeRO 1 and 2 then insist on training experts: with
frozen ones the layer is a ``SpreadFeedForward``, of which DeepSpeed knows nothing.
"""

import functools
from collections.abc import Callable

import deepspeed.comm as dist
from deepspeed.checkpoint.autoep_affine import (
    autoep_experts_for_rank,
    autoep_placement_to_affine_map,
    legacy_uniform_autoep_placement_descriptor,
)
from deepspeed.checkpoint.constants import (
    AFFINE_MAP,
    AUTOEP_EXPERT_PLACEMENT,
    AUTOEP_PARAM_EP_RANK,
    AUTOEP_PARAM_LOCAL_EXPERTS,
    AUTOEP_PARAM_LOGICAL_SHAPE,
    DS_AUTOEP_UC_META,
)
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import groups
from torch import Tensor, nn

from model.config import StMoeConfig
from model.moe.experts import Experts
from model.moe.layer import SparseFeedForward
from model.transformer import SparseFactory
from parallel.all_to_all import Traffic
from parallel.config import ParallelConfig
from parallel.experts import ExchangedExperts


class SpreadFeedForward(SparseFeedForward):
    """``SparseFeedForward`` that holds ``num_experts / expert_parallel_size`` experts.

    Construction is collective: all ranks must build their layers in the same order, after
    ``deepspeed.init_distributed()``.

    Args:
        config: the model's.
        expert_parallel_size: ranks that share one copy of the experts; divides ``num_experts`` and the world size.
        all_to_all_chunks: see ``ExchangedExperts``.
        decoder: whether the layer is one of the decoder.
    """

    def __init__(
        self, config: StMoeConfig, *, expert_parallel_size: int, all_to_all_chunks: int = 1, decoder: bool = False
    ):
        nn.Module.__init__(self)  # not AutoEPMoELayer.__init__, which converts an existing layer
        self.model_family = config.model_type
        self.ep_size = expert_parallel_size
        self.num_experts = config.num_experts
        self.num_local_experts = config.num_experts // expert_parallel_size
        self.ep_group_name = f"ep_size_{expert_parallel_size}"
        if self.ep_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(expert_parallel_size_=expert_parallel_size)
        self.ep_group = groups._get_expert_parallel_group(self.ep_group_name)
        self.ep_rank = dist.get_rank(group=self.ep_group)
        self.expert_placement_descriptor = legacy_uniform_autoep_placement_descriptor(
            self.num_experts, self.num_local_experts, expert_parallel_size
        )
        self.folding_group_handles = None
        self.tp_group = None
        self.all_to_all_chunks = all_to_all_chunks
        SparseFeedForward.__init__(self, config, decoder=decoder)
        self._mark_parameters()

    def make_experts(self, config: StMoeConfig) -> Experts:
        """Build this rank's share of the experts."""
        return ExchangedExperts(config, self.ep_group, self.all_to_all_chunks)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpreadFeedForward":
        """Move or cast the module; mark its parameters again, since materialization from meta replaces them."""
        super()._apply(fn, recurse)
        self._mark_parameters()
        return self

    def _mark_parameters(self) -> None:
        """Set the attributes by which DeepSpeed knows split parameters and the global numbers of their experts."""
        local = autoep_experts_for_rank(self.expert_placement_descriptor, self.ep_rank)
        split = (self.experts.w1, self.experts.w2, self.experts.w3)
        for parameter in split:
            logical_shape = [self.num_experts, *parameter.shape[1:]]
            affine_map = autoep_placement_to_affine_map(self.expert_placement_descriptor, logical_shape)
            meta = {
                AUTOEP_EXPERT_PLACEMENT: self.expert_placement_descriptor,
                AFFINE_MAP: affine_map.to_dict(),
                AUTOEP_PARAM_LOGICAL_SHAPE: logical_shape,
                AUTOEP_PARAM_EP_RANK: self.ep_rank,
                AUTOEP_PARAM_LOCAL_EXPERTS: list(local),
            }
            setattr(parameter, DS_AUTOEP_UC_META, meta)
            for name, value in (
                ("allreduce", False),
                ("group_name", self.ep_group_name),
                ("ds_zero_placement_family", "autoep_expert"),
                ("ds_zero_partition_group_name", self.ep_group_name),
            ):
                setattr(parameter, name, value)
        for parameter in self.parameters():
            if not any(parameter is p for p in split):
                setattr(parameter, "allreduce", True)  # noqa: B010 - not an attribute of nn.Parameter
                setattr(parameter, "ds_zero_placement_family", "replicated")  # noqa: B010


class ExpertParallelFeedForward(SpreadFeedForward, AutoEPMoELayer):
    """``SpreadFeedForward`` whose experts DeepSpeed trains."""


def sparse_factory(parallel: ParallelConfig, *, known: bool = True) -> SparseFactory:
    """Return a factory of sparse layers whose experts are split over ``parallel.expert_parallel_size`` ranks.

    Args:
        parallel: the section of the configuration.
        known: whether DeepSpeed is to know of the layers.
    """
    return functools.partial(
        ExpertParallelFeedForward if known else SpreadFeedForward,
        expert_parallel_size=parallel.expert_parallel_size,
        all_to_all_chunks=parallel.all_to_all_chunks,
    )


def traffic_of(model: nn.Module) -> list[Traffic]:
    """Return what counts the all-to-alls of each layer of ``model``."""
    return [module.traffic for module in model.modules() if isinstance(module, ExchangedExperts)]


def take_traffic(model: nn.Module) -> tuple[int, float]:
    """Sum ``Traffic.take`` over the layers of ``model``: bytes sent and seconds waited since the last call."""
    taken = [traffic.take() for traffic in traffic_of(model)]
    return sum(size for size, _ in taken), sum(seconds for _, seconds in taken)
