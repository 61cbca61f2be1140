"""Adafactor's state in a checkpoint: layout-free names, one safetensors file per rank that has something to save.

``optimizer-<rank>.safetensors`` holds that rank's ``named_state()``; ``optimizer.safetensors.index.json`` maps every
name to its file, as Hugging Face's index of model shards does. A load at any layout opens the files it needs.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from optim.adafactor import Adafactor

INDEX_FILE = "optimizer.safetensors.index.json"


def save_optimizer_state(optimizer: Optimizer, folder: Path) -> None:
    """Write what the optimizer keeps outside ``optimizer.state``, if anything; collective over all ranks.

    Args:
        optimizer: the engine's basic optimizer.
        folder: of the checkpoint; it exists.
    """
    if not isinstance(optimizer, Adafactor):
        return
    file = folder / f"optimizer-{dist.get_rank():05d}.safetensors"
    state = {name: tensor.to("cpu", copy=True) for name, tensor in optimizer.named_state().items()}
    save_file(state, file)
    _sync(file)
    saved: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(saved, (file.name, list(state)))
    if dist.get_rank() == 0:
        files = {name: file_name for file_name, names in saved for name in names}
        (folder / INDEX_FILE).write_text(json.dumps({"weight_map": files}), encoding="utf-8")
        _sync(folder / INDEX_FILE)
    dist.barrier()


def load_optimizer_state(optimizer: Optimizer, folder: Path) -> None:
    """Restore what ``save_optimizer_state`` wrote, at whatever layout.

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


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
