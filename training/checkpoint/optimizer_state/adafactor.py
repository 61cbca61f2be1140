"""Adafactor's state in a checkpoint: layout-free names, one safetensors file per rank that has something to save.

``optimizer-<rank>.safetensors`` holds that rank's ``named_state()``. ``optimizer.safetensors.index.json`` lists the
files, the file of every tensor that is in one piece, and the runs (``store.runs``) of those that are in fragments. A
load at any layout opens the files it needs.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from common.strict_json import to_json
from optim.adafactor import Adafactor
from optim.partition import Partition
from optim.partition_state import fragment_name, index_fragments, read_fragment_name
from training.checkpoint.optimizer_state.format import StateFormat, Tensors
from training.checkpoint.store.runs import Runs

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
        saved = SavedState(folder)
        optimizer.load_named_state(saved, saved.fragments)

    def describe(self, files: Mapping[str, Tensors]) -> Any:
        """Return, for each file, the names of its whole tensors and the spans of its fragments."""
        described: dict[str, tuple[list[str], list[tuple[str, int, int]]]] = {}
        for file, tensors in files.items():
            whole, fragments = described[file] = [], []
            for name in tensors:
                fragment = read_fragment_name(name)
                if fragment is None:
                    whole.append(name)
                else:
                    fragments.append(fragment)
        return described

    def index(self, described: Sequence[Any]) -> dict[str, str]:
        """Return the index."""
        files = [(file, *names) for of_rank in described for file, names in of_rank.items()]
        tensors: dict[str, int] = {}
        spans: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for number, (_, whole, fragments) in enumerate(files):
            tensors |= {name: number for name in whole if name not in tensors}  # the update counter is in every file
            for tensor, start, stop in fragments:
                spans[tensor].append((start, stop, number))
        runs = {tensor: Runs.of(ranges).to_values() for tensor, ranges in spans.items()}
        return {INDEX_FILE: to_json({"files": [file for file, *_ in files], "tensors": tensors, "fragments": runs})}

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
        self.runs: dict[str, Runs] = {}
        try:
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            if "weight_map" in index:  # of a checkpoint of format 3: each fragment is listed as a tensor
                self.files: list[str] = sorted(set(index["weight_map"].values()))
                numbers = {file: number for number, file in enumerate(self.files)}
                self.tensors = {name: numbers[file] for name, file in index["weight_map"].items()}
                self.fragments = index_fragments(self)
            else:
                self.files, self.tensors = index["files"], index["tensors"]
                self.runs = {tensor: Runs.from_values(values) for tensor, values in index["fragments"].items()}
                self.fragments = self._fragments
        except (OSError, AttributeError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / INDEX_FILE} cannot be read: {error}") from None

    def _fragments(self, tensor: str, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, elements) of the fragments of a tensor, as far as they lie in ``[start, stop)``."""
        for first, last, file in self.runs.get(tensor, Runs()).overlapping(start, stop):
            low, high = max(start, first), min(stop, last)
            yield low, self.read(self.files[file], fragment_name(tensor, first, last), slice(low - first, high - first))

    def file_of(self, name: str) -> str:
        """Return the file of a tensor or fragment. Raises KeyError."""
        if name in self.tensors:
            return self.files[self.tensors[name]]
        tensor, start, stop = read_fragment_name(name) or ("", 0, 0)
        for first, last, file in self.runs.get(tensor, Runs()).overlapping(start, stop):
            if (first, last) == (start, stop):
                return self.files[file]
        raise KeyError(name)

    def read(self, file: str, name: str, part: slice | None = None) -> Tensor:
        """Return a tensor of a file, or a part of a 1-D one. Raises ValueError: the file is missing or damaged."""
        try:
            if file not in self.opened:
                self.opened[file] = safe_open(self.folder / file, framework="pt")
            opened = self.opened[file]
            tensor: Tensor = opened.get_tensor(name) if part is None else opened.get_slice(name)[part]
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.folder / file} cannot be read: {error}") from None
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.read(self.file_of(name), name)

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        for tensor, runs in self.runs.items():
            for start, stop, _ in runs.overlapping(0, runs.numel):
                yield fragment_name(tensor, start, stop)

    def __len__(self) -> int:
        return sum(1 for _ in self)
