"""What an optimizer's step dispatches, counted on the meta device for any rank of any number of ranks.

python -m tests.support.launches --ranks 8 512

Counted is what a GPU would be given to do: neither views nor allocations nor collectives. A ``_foreach`` counts once,
or once for each tensor where its lists differ in shape or strides, which its fused kernels do not take.
"""

import argparse
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.project import ROOT
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.parameter import ExpertAxis, ParameterSpec
from optim.partition import Partition, Segment
from training.config.run import load_config
from training.engine.parameters import model_parameter_specs

ALLOCATIONS = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
HOST_READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal"}


class Launches(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.host_reads: list[str] = []
        self.on_empty: list[str] = []  # operations with an empty tensor
        self.peak_bytes = 0  # most memory in tensors made here, views not counted
        self._live: dict[int, int] = {}  # storage → bytes

    @property
    def total(self) -> int:
        """Operations in all."""
        return self.operations.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        given = _tensors((args, kwargs))
        known = {tensor.untyped_storage()._cdata for tensor in given} | self._live.keys()
        out = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        if namespace == "c10d":
            self.collectives[name] += 1
        elif name in HOST_READS:
            self.host_reads.append(name)
        elif namespace == "aten" and not func.is_view and name not in ALLOCATIONS:
            self.operations[name] += _kernels(name, args)
            if not all(tensor.numel() for tensor in given + _tensors(out)):
                self.on_empty.append(name)
        for tensor in _tensors(out):
            self._watch(tensor.untyped_storage(), known)
        return out

    def _watch(self, storage: Any, known: Iterable[int]) -> None:
        if storage._cdata not in known and storage._cdata not in self._live:
            self._live[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._live.pop, storage._cdata)
            self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _kernels(name: str, args: Sequence[Any]) -> int:
    if not name.startswith("_foreach"):
        return 1
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    alike = all(len({(t.shape, t.stride(), t.dtype) for t in same}) == 1 for same in zip(*lists, strict=True))
    return 1 if alike else len(lists[0])


def st_moe_l_specs(expert_parallel_size: int) -> list[ParameterSpec]:
    """Specs of the parameters of configs/st_moe_l.yaml on the first rank of an expert-parallel group."""
    config = load_config(ROOT / "configs" / "st_moe_l.yaml", []).st_moe_config()
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config)
    specs = []
    for spec in model_parameter_specs(model).values():
        axis = spec.expert_axis
        if axis is not None and axis.split:
            axis = ExpertAxis(axis.total, range(axis.total // expert_parallel_size), split=True)
        specs.append(ParameterSpec(spec.name, spec.shape, axis))
    return specs


def share(specs: Iterable[ParameterSpec], stage: int, ranks: int, rank: int) -> Partition:
    """What one of ``ranks`` holds under ZeRO: stage 1 splits the parameters' concatenation, stage 3 each of them."""
    specs, segments, used = list(specs), [], 0
    if stage == 3:
        for spec in specs:
            each = -(-spec.numel // ranks)
            start, stop = (min(edge * each, spec.numel) for edge in (rank, rank + 1))
            segments.append(Segment(spec, start, stop, used))
            used += each
    else:
        used, position = -(-sum(spec.numel for spec in specs) // ranks), 0
        for spec in specs:
            start, stop = (min(max(edge * used - position, 0), spec.numel) for edge in (rank, rank + 1))
            segments.append(Segment(spec, start, stop, position + start - rank * used if start < stop else 0))
            position += spec.numel
    tensor = nn.Parameter(torch.empty(used, device="meta"))
    tensor.grad = torch.empty_like(tensor)
    return Partition(tensor, tuple(segments), is_split=True, group_size=ranks, group_rank=rank)


def partitions(specs: Sequence[ParameterSpec], stage: int, ranks: int, rank: int, size: int) -> Iterator[Partition]:
    """The partitions of the dense parameters and of the experts, at expert-parallel size ``size``."""
    split = [spec for spec in specs if spec.expert_axis is not None and spec.expert_axis.split]
    yield share([spec for spec in specs if spec not in split], stage, ranks, rank)
    yield share(split, stage, ranks // size, rank // size)


@contextmanager
def pretended_ranks(ranks: int, rank: int) -> Iterator[None]:
    """Make collectives return at once, as if other ranks had added nothing."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def count(held: Sequence[Partition], **options: Any) -> Launches:
    """Count the second step of an Adafactor over these partitions."""
    optimizer = Adafactor([{"params": [partition.tensor]} for partition in held], {}, **options)
    optimizer.bind(held)
    optimizer.step()
    with Launches() as launches:
        optimizer.step()
    return launches


def main() -> None:
    """Print the smallest and the largest count over ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 512])
    parser.add_argument("--zero-stages", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--expert-parallel-size", type=int, default=8)
    parser.add_argument("--every", type=int, default=1, help="count every n-th rank only")
    options = parser.parse_args()
    size = options.expert_parallel_size
    specs = st_moe_l_specs(size)
    print("st_moe_l    launches      on empty tensors  all-reduces  host reads  scratch, MiB")
    for stage in options.zero_stages:
        for ranks in options.ranks:
            found = []
            for rank in range(0, ranks, options.every):
                with pretended_ranks(ranks, rank):
                    found.append(count(list(partitions(specs, stage, ranks, rank, size))))
            totals = [launches.total for launches in found]
            print(
                f"ZeRO {stage}, {ranks:3}  {min(totals):5} to {max(totals):5}  "
                f"{max(len(f.on_empty) for f in found):16}  {max(f.collectives.total() for f in found):11}  "
                f"{max(len(f.host_reads) for f in found):10}  {max(f.peak_bytes for f in found) / 2**20:12.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
