"""Adafactor's state in a checkpoint: layout-free names, one safetensors file per rank that has something to save.

``optimizer-<rank>.safetensors`` holds that rank's ``named_state()``; ``optimizer.safetensors.index.json`` maps every
name to its file, as Hugging Face's index of a large model does. A load at any layout opens the files it needs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from common.strict_json import to_json
from optim.adafactor import Adafactor
from optim.partition import Partition
from training.checkpoint.optimizer_state.format import StateFormat, Tensors

INDEX_FILE = "optimizer.safetensors.index.json"
PREFIX = "optimizer"


class AdafactorState(StateFormat):
    """State by name, which loads at every layout."""

    def write(self, optimizer: Optimizer, partitions: Sequence[Partition], rank: int) -> dict[str, Tensors]:
        """Return this rank's ``named_state()`` as one file."""
        assert isinstance(optimizer, Adafactor)
        return {f"{PREFIX}-{rank:05d}.safetensors": optimizer.named_state()}

    def read(self, optimizer: Optimizer, partitions: Sequence[Partition], folder: Path, rank: int) -> None:
        """Load what this rank needs of all ranks' files."""
        assert isinstance(optimizer, Adafactor)
        optimizer.load_named_state(SavedState(folder))

    def index(self, tensors_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Return the index: tensor name → file."""
        weight_map = {name: file for file, names in tensors_of.items() for name in names}
        return {INDEX_FILE: to_json({"weight_map": weight_map})}

    def is_layout_free(self, file: str) -> bool:
        """Return whether the file is one of this format's, all of which are."""
        return file.startswith(PREFIX)


class SavedState(Mapping[str, Tensor]):
    """The state that all ranks saved; a tensor is read when it is asked for.

    Raises:
        ValueError: the index or a file is missing or damaged.
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
