"""Weights of a checkpoint or an export, read at any layout."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import StMoeConfig
from model.st_moe import StMoeForConditionalGeneration
from training.checkpoint.initial.source import WEIGHTS_FILE, Source
from training.checkpoint.store.index import WEIGHT, TensorReader
from training.config.errors import ConfigError


class Reader(Protocol):
    """Reads weights, whatever layout they were written at.

    Attributes:
        folder: of the checkpoint or export.
    """

    folder: Path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter → its global shape."""

    def weight(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements ``[start, stop)`` of a parameter, 1-D."""


def open_source(source: Source, config: StMoeConfig, key: str) -> Reader:
    """Check a source, and return its reader; collective over all ranks.

    Args:
        source: of the weights.
        config: of the model that is to have them.
        key: setting and value that name the source, for messages.

    Raises:
        ConfigError: it is damaged, or its parameters are not those of the model; on all ranks.
    """
    reader: Reader
    if source.run_dir is None:
        reader = ExportWeights(source.folder, key)
    else:
        from training.checkpoint.agreement import agree_on_checkpoint  # DeepSpeed, which takes seconds

        agreed = agree_on_checkpoint(source.run_dir, first=source.folder)
        if source.chosen and agreed.folder.resolve() != source.folder.resolve():
            raise ConfigError(f"{key} is damaged: name another checkpoint")
        reader = CheckpointWeights(agreed.folder)
    _check_shapes(reader.shapes, config, key)
    return reader


def _check_shapes(shapes: dict[str, tuple[int, ...]], config: StMoeConfig, key: str) -> None:
    """Raise ConfigError at the first parameter that is not the model's."""
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in [*wanted, *shapes]:
        there, here = shapes.get(name), wanted.get(name)
        if there != here:
            words = [f"has shape {list(shape)}" if shape else "does not exist" for shape in (there, here)]
            raise ConfigError(
                f"{key}: {name} {words[0]} there and {words[1]} in this model: give the model section of this run the "
                "sizes of those weights"
            )


class CheckpointWeights:
    """The weights of a checkpoint; a ``Reader``."""

    def __init__(self, folder: Path):
        self.folder, self.reader = folder, TensorReader(folder)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``Reader``."""
        return {name: parameter.shape for name, parameter in self.reader.index.parameters.items()}

    def weight(self, name: str, start: int, stop: int) -> Tensor:
        """See ``Reader``."""
        return self.reader.read(name, WEIGHT, start, stop)


class ExportWeights:
    """The weights of a Hugging Face folder; a ``Reader``.

    Args:
        folder: of the export.
        key: setting and value that name it, for messages.

    Raises:
        ConfigError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        index = folder / f"{WEIGHTS_FILE}.index.json"
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
            names = sorted(set(weight_map.values())) or [WEIGHTS_FILE]
            self.files = [safe_open(folder / name, framework="pt") for name in names]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{key} cannot be read: {error}") from None
        self.file_of = {key: file for file in self.files for key in file.keys()}  # noqa: SIM118
        self.last: tuple[str, Any] = ("", None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``Reader``."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self.file_of.items()}

    def weight(self, name: str, start: int, stop: int) -> Tensor:
        """See ``Reader``."""
        if self.last[0] != name:
            self.last = name, self.file_of[name].get_tensor(name).view(-1)
        part: Tensor = self.last[1][start:stop]
        return part
