"""Tensors in pieces over several files, with an index by which any range of any tensor can be read again.

``index.json`` names every parameter with its whole shape and, for each contiguous range of its elements (flat,
row-major, all experts included), the file that holds it. A range is stored once per state: ``weight`` and what the
optimizer keeps per element, such as ``exp_avg``, under ``PARAMETER/STATE`` in the file. Nothing depends on a layout.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.checkpoint.store.manifest import FileRecord
from training.checkpoint.store.tensor_file import CHUNK, TensorFileWriter

INDEX_FILE = "index.json"
WEIGHT = "weight"


class Piece(NamedTuple):
    """Elements ``[start, stop)`` of a parameter."""

    start: int
    stop: int
    file: str


@dataclass(frozen=True)
class Entry:
    """A parameter: its whole shape, whether its first axis counts experts, and its pieces in order."""

    shape: tuple[int, ...]
    expert: bool
    pieces: tuple[Piece, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Args:
        states: of every parameter, ``weight`` among them, with their dtypes as torch names them.
        scalars: states that are one number for all parameters, such as AdamW's ``step``.
        parameters: by name.
    """

    states: dict[str, str]
    scalars: dict[str, float]
    parameters: dict[str, Entry]

    def __post_init__(self) -> None:
        """Every element of every parameter is in exactly one piece. Raises ValueError."""
        for name, entry in self.parameters.items():
            stops = [0, *(piece.stop for piece in entry.pieces)]
            starts = [*(piece.start for piece in entry.pieces), entry.numel]
            if stops != starts:
                raise ValueError(f"the pieces of {name} do not make up its {starts[-1]} elements: {entry.pieces}")

    def dtype(self, state: str) -> torch.dtype:
        """Of the stored elements."""
        return getattr(torch, self.states[state])

    def to_json(self) -> str:
        """The text of ``index.json``."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """From ``folder``. Raises OSError, KeyError, TypeError or ValueError when the file is missing or broken."""
        values = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        parameters = {
            name: Entry(tuple(entry["shape"]), entry["expert"], tuple(Piece(*piece) for piece in entry["pieces"]))
            for name, entry in values["parameters"].items()
        }
        return cls(values["states"], values["scalars"], parameters)


def shard_name(number: int, count: int) -> str:
    """The file of rank ``number`` of ``count``."""
    return f"shard-{number:05d}-of-{count:05d}.safetensors"


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` in parts of at most ``CHUNK``."""
    for first in range(start, stop, CHUNK):
        yield first, min(first + CHUNK, stop)


def write_shard(
    path: Path,
    ranges: Iterable[tuple[str, int, int]],
    states: dict[str, torch.dtype],
    read: Callable[[str, str, int, int], Tensor],
) -> FileRecord:
    """One file; gives what a manifest says of it.

    Args:
        path: the file, which must not exist.
        ranges: parameter, start, stop; each parameter at most once.
        states: dtypes of what is stored of each.
        read: called with (parameter, state, start, stop) for consecutive parts of each range; gives 1-D elements.
    """
    ranges = list(ranges)
    header = {
        f"{name}/{state}": (dtype, (stop - start,)) for name, start, stop in ranges for state, dtype in states.items()
    }
    with TensorFileWriter(path, header) as file:
        for name, start, stop in ranges:
            for state in states:
                for first, last in chunks(start, stop):
                    file.append(read(name, state, first, last))
    return file.record


class ShardReader:
    """Reads ranges of parameters from the files of ``folder``; files are mapped, not loaded.

    Raises:
        ValueError: the index is missing or broken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.index = Index.read(folder)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX_FILE} cannot be read: {error}") from None
        self._files: dict[str, Any] = {}

    def read(self, name: str, state: str, start: int, stop: int) -> Tensor:
        """Elements ``[start, stop)`` of a parameter's state, 1-D, as they are stored.

        Raises:
            ValueError: a file is missing or cut off.
        """
        parts = []
        for piece in self.index.parameters[name].pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                stored = self._open(piece.file).get_slice(f"{name}/{state}")
                parts.append(stored[first - piece.start : last - piece.start])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{self.folder / file} cannot be read: {error}") from None
        return self._files[file]
