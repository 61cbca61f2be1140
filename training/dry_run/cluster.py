"""A cluster of which one rank alone is here: torch's fake process group, in which a collective takes no time.

Inside ``pretend`` the project's code and DeepSpeed's run as on that rank, with these exceptions: see ``_REPLACED``.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import deepspeed.comm as dist
import deepspeed.ops
import torch
from deepspeed.runtime.comm import coalesced_collectives
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from optim import partition_state
from training.config.deepspeed import deepspeed_config, zero_stage
from training.config.run import RunConfig
from training.dry_run.fake_rank import FakeRank
from training.engine import build
from training.engine.build import meta_model
from training.run.launchers import LOOPBACK
from training.run.process import Process

PORT = 29500  # nobody listens
FAKE = "fake"  # torch's name of the backend
UNLIMITED = 1 << 62  # elements that the optimizer works on at a time: fake ones take no memory
# DeepSpeed's keys that a dry run leaves out.
WRITING = ("tensorboard", "wandb", "comet", "csv_monitor", "comms_logger", "flops_profiler", "wall_clock_breakdown")
MOVING = ("offload_optimizer", "offload_param", "zenflow")


@contextlib.contextmanager
def pretend(process: Process) -> Iterator[FakeRank]:
    """Be one rank of many: all groups can be made, tensors are fake, and collectives return at once.

    Args:
        process: the rank to be; its variables are exported for DeepSpeed.
    """
    process.export(LOOPBACK, PORT)
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # see ``training.run.distributed``
    torch.distributed.init_process_group(FAKE, store=FakeStore(), rank=process.rank, world_size=process.world_size)
    try:
        deepspeed.init_distributed(verbose=False)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)
            for owner, name, replacement in _REPLACED:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, replacement)
            yield stack.enter_context(FakeRank())
    finally:
        dist.destroy_process_group()


def _convert(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Convert a module's tensors, as of ``nn.Module._apply``, which refuses fake tensors that something refers to."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            converted = fn(parameter)
        if converted is parameter:
            continue
        if converted.device == parameter.device:
            parameter.data = converted
        else:  # the device of a fake tensor never changes
            self._parameters[name] = nn.Parameter(converted, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        self._buffers[name] = None if buffer is None else fn(buffer)
    return self


def _agree(_: list[int]) -> None:
    """Return: the other ranks, which are not there, have the same numbers."""


def _reduce_scatter(tensors: list[Tensor], group: Any = None) -> list[Tensor]:
    """Reduce-scatter as DeepSpeed does, but for the buffer, which it fills with a copy per tensor and rank."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    shares = [math.ceil(tensor.numel() / world) for tensor in tensors]
    is_whole = len(tensors) == 1 and tensors[0].numel() % world == 0
    buffer = tensors[0].view(-1) if is_whole else tensors[0].new_empty(sum(shares) * world)
    own = buffer.narrow(0, rank * sum(shares), sum(shares))
    coalesced_collectives._torch_reduce_scatter_fn(buffer, own, group=group)
    lengths = [min(max(t.numel() - rank * share, 0), share) for t, share in zip(tensors, shares, strict=True)]
    starts = [sum(shares[:i]) for i in range(len(shares))]
    return [own.narrow(0, start, length) for start, length in zip(starts, lengths, strict=True)]


def _meta_model(*args: Any, **kwargs: Any) -> nn.Module:
    """Make the model of plain meta tensors: what a fake one says of its device would be copied to real parameters."""
    with unset_fake_temporarily():
        return meta_model(*args, **kwargs)


def _options(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's options without those that write files or move states to the host.

    ZeRO 3 gathers parameter by parameter: as many bytes, in more calls. Gathered together, they would be put in order
    by a copy per parameter and rank.
    """
    options = {key: value for key, value in deepspeed_config(config, world_size).items() if key not in WRITING}
    zero = {key: value for key, value in options.get("zero_optimization", {}).items() if key not in MOVING}
    if zero_stage(options) == 3:
        zero["stage3_allgather_sequential"] = True
    return options | ({"zero_optimization": zero} if zero else {})


# What asks another rank, and copies of one operation per rank, of which 512 ranks would be minutes of nothing.
_REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (nn.Module, "_apply", _convert),
    (partitioned_param_coordinator, "assert_ints_same_as_other_ranks", _agree),
    (partition_parameters, "assert_ints_same_as_other_ranks", _agree),
    (stage3, "assert_ints_same_as_other_ranks", _agree),
    (stage3, "reduce_scatter_coalesced", _reduce_scatter),
    (partition_state, "CPU_BLOCK", UNLIMITED),
    (build, "meta_model", _meta_model),
    (build, "deepspeed_config", _options),
)
