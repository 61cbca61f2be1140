"""What an engine really holds and sends, to compare with plans: bytes of its tensors, of its collectives."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.comm import comm
from torch import Tensor

from optim.adafactor import Adafactor
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.rank_file import rank_contents
from training.config.run import RunConfig
from training.engine.build import build_engine
from training.engine.parameters import engine_partitions, frozen_partitions
from training.engine.step import update

FEW_BYTES = 64  # messages up to this size are norms and counts, which plans leave out

# Position of the tensor whose bytes count, by collective: the output of an all-gather, the input of the others.
COUNTED = {
    "all_reduce": (0, "tensor"),
    "all_gather_into_tensor": (0, "output_tensor"),
    "reduce_scatter_tensor": (1, "input_tensor"),
    "all_to_all_single": (1, "input"),
}
KINDS = {
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}


class Collectives:
    """Counts the bytes of collectives in groups of several ranks, by kind, while it is entered."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.few = 0
        self.depth = threading.local()
        self.restored: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "Collectives":
        for name in COUNTED:
            for place in (comm.cdb, torch.distributed):
                if hasattr(place, name):
                    self.restored.append((place, name, getattr(place, name)))
                    setattr(place, name, self._counting(name, getattr(place, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for place, name, function in self.restored:
            setattr(place, name, function)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            outermost = not getattr(self.depth, "inside", False)
            self.depth.inside = True
            try:
                if outermost:
                    self._count(name, args, kwargs)
                return function(*args, **kwargs)
            finally:
                if outermost:
                    self.depth.inside = False

        return counted

    def _count(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        position, key = COUNTED[name]
        tensor = args[position] if len(args) > position else kwargs[key]
        groups = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.distributed.ProcessGroup)]
        if dist.get_world_size(group=groups[0] if groups else None) == 1:
            return
        if tensor.nbytes <= FEW_BYTES:
            self.few += tensor.nbytes
            return
        kind = KINDS.get(name, name)
        self.bytes[kind] = self.bytes.get(kind, 0) + tensor.nbytes


def storage_bytes(tensors: Iterable[Tensor | None], but: Iterable[Tensor | None] = ()) -> int:
    """Return the bytes of the storages of tensors, each once, without those of others."""
    known = {_storage(tensor) for tensor in but if tensor is not None}
    found = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None}
    return sum(size for storage, size in found.items() if storage not in known)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def weights(engine: Any) -> Iterator[Tensor]:
    """Yield the model's weights, under ZeRO 3 this rank's parts."""
    for parameter in engine.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter).data


def masters(engine: Any) -> list[Tensor]:
    """Return what the torch optimizer steps."""
    zero = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        if hasattr(zero, name):
            return [tensor.data for tensor in getattr(zero, name)]
    if hasattr(zero, "fp32_groups"):
        return [tensor.data for group in zero.fp32_groups for tensor in group]
    return [parameter.data for group in zero.param_groups for parameter in group["params"]]


def gradients(engine: Any) -> Iterator[Tensor | None]:
    """Yield every tensor in which gradients are kept now."""
    zero = engine.optimizer
    for parameter in engine.module.parameters():
        yield parameter.grad
        yield getattr(parameter, "grad_accum", None)
    for found in (getattr(zero, "averaged_gradients", None) or {}, getattr(zero, "all_grad_tensors", None) or {}):
        for tensors in found.values():
            yield from tensors or ()
    yield getattr(zero, "grad_partitions_flat_buffer", None)
    yield from getattr(zero, "fp32_groups_gradients_flat", ())


def buffers(engine: Any) -> Iterator[Tensor]:
    """Yield DeepSpeed's buffers for gradients that are to be reduced."""
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        buffer = bucket.buffer
        yield from buffer if isinstance(buffer, list) else [buffer]


def optimizer_bytes(engine: Any) -> int:
    """Return the bytes of the torch optimizer's state."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if isinstance(optimizer, Adafactor):
        return optimizer.state_nbytes
    return storage_bytes(
        value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )


def checkpoint_bytes(engine: Any, config: RunConfig) -> int:
    """Return the bytes of the tensors that this rank writes into a checkpoint. Collective."""
    optimizer, partitions = engine.basic_optimizer, engine_partitions(engine)
    kind = state_format(config.optimizer.name)
    _, tensors = rank_contents(optimizer, partitions, with_state=kind.in_rank_files, frozen=frozen_partitions(engine))
    files = {"": tensors} | kind.write(optimizer, partitions, dist.get_rank())
    return sum(tensor.nbytes for of_file in files.values() for tensor in of_file.values())


def measure(config: RunConfig, batches: list[dict[str, Tensor]], steps: int = 3) -> dict[str, Any]:
    """Train some steps on this rank's micro-batches; return bytes of the last one. Collective.

    Args:
        config: the run's.
        batches: of each step.
        steps: the first ones of ZeRO 3 record what later ones repeat.

    Returns:
        ``weights``, ``master``, ``optimizer``, ``gradients``, ``buckets``, ``backward_gradients`` in bytes; the bytes
        of each kind of collective; ``few``, bytes of the messages that plans leave out; ``checkpoint``, bytes that this
        rank writes.
    """
    engine = build_engine(config, dist.get_world_size(), "cpu")
    seen: dict[str, int] = {"buckets": 0, "gradients": 0, "backward_gradients": 0}
    zero, before_step, allreduce = engine.optimizer, engine.step, engine.allreduce_gradients

    def look(name: str) -> None:
        kept = list(buffers(engine))
        seen["buckets"] = max(seen["buckets"], storage_bytes(kept))
        size = storage_bytes(gradients(engine), but=[*kept, *weights(engine)])
        for which in {name, "backward_gradients"}:
            seen[which] = max(seen[which], size)

    def step() -> Any:
        if engine.is_gradient_accumulation_boundary():
            look("gradients")
        return before_step()

    def reduce(*args: Any, **kwargs: Any) -> Any:
        look("backward_gradients")
        return allreduce(*args, **kwargs)

    engine.step, engine.allreduce_gradients = step, reduce
    epilogue = getattr(zero, "independent_gradient_partition_epilogue", None)
    if epilogue is not None:

        def at_the_end() -> Any:
            look("backward_gradients")
            return epilogue()

        zero.independent_gradient_partition_epilogue = at_the_end
    for number in range(steps - 1):
        update(engine, batches, 0, number, dist.get_rank())
    with Collectives() as collectives:
        update(engine, batches, 0, steps, dist.get_rank())
    whole = list(weights(engine))
    return {
        **seen,
        "weights": storage_bytes(whole),
        "master": storage_bytes(masters(engine), but=whole),
        "optimizer": optimizer_bytes(engine),
        "checkpoint": checkpoint_bytes(engine, config),
        "few": collectives.few,
        "collectives": collectives.bytes,
    }
