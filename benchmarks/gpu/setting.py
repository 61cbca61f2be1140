"""Where the steps run and at what size: the same code on a GPU and, at toy sizes, as a rehearsal on a CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What every step is told.

    Args:
        device: ``cuda:0`` or ``cpu``.
        toy: whether sizes are those of the rehearsal.
        data: prepared data set: ``train/``, ``validation/``, ``vocabulary/``.
        scratch: folder for runs and checkpoints, removed at the end.
        traces: folder for profiler traces; None: write none.
    """

    device: str
    toy: bool
    data: Path
    scratch: Path
    traces: Path | None = None

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    @property
    def kind(self) -> str:
        """The device without its number, as torch's functions of a device type take it."""
        return self.device.partition(":")[0]

    def pick(self, full: T, toy: T) -> T:
        """Return the value for this size."""
        return toy if self.toy else full


def card_name() -> dict[str, Any]:
    """Return what identifies the card and its software; everything is None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return {"card": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
