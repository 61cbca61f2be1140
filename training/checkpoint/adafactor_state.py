"""Adafactor's state in a checkpoint: layout-free names, one safetensors file per rank that has something to save.

``optimizer-<rank>.safetensors`` holds that rank's ``named_state()``; ``optimizer.safetensors.index.json`` maps every
name to its file, as Hugging Face's index of model shards does. A load at any layout opens the files it needs.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from optim.adafactor import Adafactor

INDEX_FILE = "optimizer.safetensors.index.json"


def optimizer_file(rank: int) -> str:
    """The file of a rank."""
    return f"optimizer-{rank:05d}.safetensors"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What this rank has to save of what the optimizer keeps outside ``optimizer.state``; mostly nothing."""
    return optimizer.named_state() if isinstance(optimizer, Adafactor) else {}


def optimizer_index(names: Mapping[str, list[str]]) -> str:
    """The text of the index.

    Args:
        names: of the tensors in each file.
    """
    return json.dumps({"weight_map": {name: file for file, tensors in names.items() for name in tensors}})


def load_optimizer_state(optimizer: Optimizer, folder: Path) -> None:
    """Restore what ``optimizer_tensors`` gave, at whatever layout.

    Raises:
        ValueError: a file is missing or broken, or the state is of another model or optimizer.
    """
    if isinstance(optimizer, Adafactor):
        optimizer.load_named_state(SavedOptimizerState(folder))


class SavedOptimizerState(Mapping[str, Tensor]):
    """The whole state, of all ranks that saved it; a tensor is read when it is asked for.

    Raises:
        ValueError: the index or a file is missing or broken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.opened: dict[str, Any] = {}
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            self.files: dict[str, str] = index["weight_map"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / INDEX_FILE} cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        file = self.files[name]
        try:
            if file not in self.opened:
                self.opened[file] = safe_open(self.folder / file, framework="pt")
            return self.opened[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.folder / file} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
