"""Tensors of a rank that is not there: they have shapes, dtypes and a device, but no values and no memory.

torch's ``FakeTensorMode`` computes the shapes of every operation; the code that runs is that of a real rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroup

# torch's operation → what its bytes are counted as.
KINDS = {
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "broadcast_": "broadcast",
}
# What a read of a condition returns; DeepSpeed keeps "a gradient overflows" as a byte.
ANSWERS: dict[torch.dtype, float] = {torch.bool: False, torch.uint8: 0}
SILENT = ("barrier", "monitored_barrier_")


class Collective(NamedTuple):
    """A collective in which this rank took part."""

    phase: str
    kind: str  # of ``KINDS``, or torch's name of another operation
    ranks: tuple[int, ...]  # of its group
    nbytes: int  # of the tensor before it is divided or after it is gathered, whichever is larger, on this rank


class FakeRank(FakeTensorMode):
    """Context in which tensors are fake; records collectives, and answers what asks for a value.

    A number that the host reads from a tensor is 1, and a condition is false: so no gradient is an overflow, and no
    norm is infinite. Nothing else depends on a value, or torch raises ``DynamicOutputShapeException``.

    Attributes:
        collectives: so far.
        phases: for each, the number of collectives before it, and its name.
        host_reads: so far.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.collectives: list[Collective] = []
        self.phases: list[tuple[int, str]] = [(0, "")]
        self.host_reads = 0
        self._ranks: dict[str, tuple[int, ...]] = {}

    def enter(self, phase: str) -> None:
        """Begin a phase: collectives belong to it from now on."""
        self.phases.append((len(self.collectives), phase))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        if func is torch.ops.prim.device.default and not self.in_kernel_invocation:
            return args[0].fake_device  # half of all calls
        if func is torch.ops.aten._local_scalar_dense.default:
            self.host_reads += 1
            return ANSWERS.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if func.namespace == "c10d":
            self._record(func, args)
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    def _record(self, func: Any, args: Any) -> None:
        name = func._schema.name.removeprefix("c10d::")
        if name in SILENT:
            return
        names = [argument.name for argument in func._schema.arguments]
        group = ProcessGroup.unbox(args[names.index("process_group")])
        ranks = self._ranks.get(group.group_name)
        if ranks is None:
            ranks = self._ranks[group.group_name] = tuple(torch.distributed.get_process_group_ranks(group))
        nbytes = max(map(_nbytes, args))
        self.collectives.append(Collective(self.phases[-1][1], KINDS.get(name, name), ranks, nbytes))


def _nbytes(argument: Any) -> int:
    """Bytes of a tensor, or of all tensors of a nested list."""
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_nbytes, argument)) if isinstance(argument, list | tuple) else 0
