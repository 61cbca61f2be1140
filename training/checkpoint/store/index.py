"""Tensors spread over several files, with an index by which any range of any parameter can be read again.

``index.json`` lists the files, and every parameter with its global shape and the runs of its elements (flat, row-major,
all experts included), which tell the file of each contiguous range. A range is stored once per state: ``weight`` and
what the optimizer keeps per element, such as ``exp_avg``, under ``PARAMETER/STATE`` in the file. Nothing depends on a
layout.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.strict_json import to_json
from training.checkpoint.store.manifest import FileRecord
from training.checkpoint.store.runs import Runs
from training.checkpoint.store.tensor_file import CHUNK, TensorFileWriter

INDEX_FILE = "index.json"
WEIGHT = "weight"


class StoredRange(NamedTuple):
    """Elements ``[start, stop)`` of a parameter, all experts included, and the file that holds them."""

    start: int
    stop: int
    file: str


@dataclass(frozen=True)
class StoredParameter:
    """A parameter.

    Args:
        shape: of the whole parameter.
        split_experts: whether its leading axis runs over experts dealt to ranks.
        ranges: of its elements, in the files of the index.
        frozen: whether it was not trained: of its states only ``weight`` is stored.
    """

    shape: tuple[int, ...]
    split_experts: bool
    ranges: Runs
    frozen: bool = False

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Index:
    """What the tensor files of a folder hold.

    Args:
        states: of every parameter that is not frozen, ``weight`` among them, with their dtypes as torch names them.
        scalars: states that are one number for all parameters, such as AdamW's ``step``.
        files: by number.
        parameters: by name.

    Raises:
        ValueError: the ranges of a parameter do not make up its elements, or one is in no file.
    """

    states: dict[str, str]
    scalars: dict[str, float]
    files: tuple[str, ...]
    parameters: dict[str, StoredParameter]

    def __post_init__(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.ranges.numel != parameter.numel:
                raise ValueError(
                    f"the ranges of {name} do not make up its {parameter.numel} elements: {parameter.ranges.numel}"
                )
            if parameter.ranges.last_file >= len(self.files):
                raise ValueError(f"{name} is in file {parameter.ranges.last_file} of {len(self.files)}")

    def dtype(self, state: str) -> torch.dtype:
        """Return the dtype of the stored elements."""
        return getattr(torch, self.states[state])

    def states_of(self, name: str) -> dict[str, torch.dtype]:
        """Return what is stored of each element of a parameter, with its dtype."""
        kept = [WEIGHT] if self.parameters[name].frozen else list(self.states)
        return {state: self.dtype(state) for state in kept}

    def stored(self, name: str, start: int, stop: int) -> Iterator[StoredRange]:
        """Yield the ranges, in order, that hold elements ``[start, stop)`` of a parameter: what is read for them."""
        for first, last, file in self.parameters[name].ranges.overlapping(start, stop):
            yield StoredRange(first, last, self.files[file])

    def to_json(self) -> str:
        """Return the text of ``index.json``."""
        parameters = {
            name: {"shape": p.shape, "expert": p.split_experts, "runs": p.ranges.to_values()}
            | ({"frozen": True} if p.frozen else {})
            for name, p in self.parameters.items()
        }
        return to_json({"states": self.states, "scalars": self.scalars, "files": self.files, "parameters": parameters})

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read ``folder/index.json``.

        Raises:
            OSError, AttributeError, KeyError, TypeError, ValueError: it is missing or damaged.
        """
        values = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if "files" not in values:
            return cls._of_ranges(values)
        parameters = {
            name: StoredParameter(tuple(p["shape"]), p["expert"], Runs.from_values(p["runs"]), p.get("frozen", False))
            for name, p in values["parameters"].items()
        }
        return cls(values["states"], values["scalars"], tuple(values["files"]), parameters)

    @classmethod
    def _of_ranges(cls, values: Mapping[str, Any]) -> "Index":
        """The index of a checkpoint of format 3, which lists every range with the name of its file."""
        entries = values["parameters"]
        files = sorted({file for p in entries.values() for _, _, file in p["pieces"]})
        numbers = {file: number for number, file in enumerate(files)}
        parameters = {}
        for name, p in entries.items():
            ranges = Runs.of((start, stop, numbers[file]) for start, stop, file in p["pieces"])
            parameters[name] = StoredParameter(tuple(p["shape"]), p["expert"], ranges, p.get("frozen", False))
        return cls(values["states"], values["scalars"], tuple(files), parameters)


def rank_file_name(rank: int, world_size: int) -> str:
    """Return the name of the file of weights, and state per weight, that a rank writes."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in ranges of at most ``CHUNK`` elements."""
    for first in range(start, stop, CHUNK):
        yield first, min(first + CHUNK, stop)


def write_ranges(
    path: Path,
    ranges: Iterable[tuple[str, int, int]],
    states_of: Callable[[str], dict[str, torch.dtype]],
    read: Callable[[str, str, int, int], Tensor],
) -> FileRecord:
    """Write one file of ranges, chunk by chunk, and return its record for a manifest.

    Args:
        path: the file, which must not exist.
        ranges: parameter, start, stop; each parameter at most once.
        states_of: called with a parameter; returns the dtypes of what is stored of it.
        read: called with (parameter, state, start, stop) for consecutive chunks of each range; returns 1-D elements.
    """
    ranges = list(ranges)
    header = {
        f"{name}/{state}": (dtype, (stop - start,))
        for name, start, stop in ranges
        for state, dtype in states_of(name).items()
    }
    with TensorFileWriter(path, header) as file:
        for name, start, stop in ranges:
            for state in states_of(name):
                for first, last in chunks(start, stop):
                    file.append(read(name, state, first, last))
    return file.record


class TensorReader:
    """Reads ranges of parameters from the files of ``folder``; files are mapped, not loaded.

    Raises:
        ValueError: the index is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.index = Index.read(folder)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX_FILE} cannot be read: {error}") from None
        self._files: dict[str, Any] = {}

    def read(self, name: str, state: str, start: int, stop: int) -> Tensor:
        """Return elements ``[start, stop)`` of a parameter's state, 1-D, in the dtype they are stored in.

        Raises:
            ValueError: a file is missing or truncated.
        """
        found = []
        for stored in self.index.stored(name, start, stop):
            first, last = max(start, stored.start), min(stop, stored.stop)
            tensor = self._open(stored.file).get_slice(f"{name}/{state}")
            found.append(tensor[first - stored.start : last - stored.start])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{self.folder / file} cannot be read: {error}") from None
        return self._files[file]
