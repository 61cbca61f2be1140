"""State of an optimizer that is no number per weight, kept by rank, for the layout it was written at.

bitsandbytes quantises moments in blocks of the flat tensor that a rank holds: at another layout the blocks are others.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer


def rank_state_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank-state-{rank:05d}.safetensors"


def rank_state(optimizer: Optimizer, owners: list[Tensor]) -> dict[str, Tensor]:
    """All that ``optimizer.state`` has of ``owners``, under their number and its name; numbers as 0-d tensors."""
    return {
        f"{i}/{name}": torch.as_tensor(value)
        for i, owner in enumerate(owners)
        for name, value in optimizer.state[owner].items()
    }


def load_rank_state(optimizer: Optimizer, owners: list[Tensor], path: Path) -> None:
    """Restore it, for the same owners in the same order. Raises ValueError when the file is missing or broken."""
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for key, value in saved.items():
        number, _, name = key.partition("/")
        owner = owners[int(number)]
        is_count = value.dim() == 0 and not value.is_floating_point()
        optimizer.state[owner][name] = value.item() if is_count else value.to(owner.device)
