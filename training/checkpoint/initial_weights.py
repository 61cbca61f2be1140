"""Begins a run with the weights of another run or of an export (``training.init_from``), at any layout.

Nothing else is taken over: optimizer, schedule, position in the text and step are those of a new run.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from common.logs import get_logger
from common.paths import searched
from data.streaming.identity import VOCABULARY
from data.tokenizer import MODEL_FILE, Tokenizer
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.store.manifest import MANIFEST_FILE, DamagedError
from training.checkpoint.store.state import read_folder
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.run.folder import RunFolder

if TYPE_CHECKING:
    from model.config import StMoeConfig

EXPORTED = "model.safetensors"
# Keys of the model section that always change the shape of some parameter. ``open_source`` compares all shapes.
SIZES = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_experts")

logger = get_logger(__name__)


class Source(NamedTuple):
    """A folder with weights."""

    folder: Path  # of a checkpoint or of an export
    run_dir: Path | None  # of the checkpoint's run; None: an export
    chosen: bool  # whether the user named the checkpoint itself


class Reader(Protocol):
    """Reads weights, whatever layout they were written at.

    Attributes:
        folder: of the checkpoint or export.
    """

    folder: Path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter → its global shape."""

    def weight(self, name: str, start: int, stop: int) -> Any:
        """Return elements ``[start, stop)`` of a parameter, a 1-D tensor."""


def find_source(config: RunConfig, tokenizer: Tokenizer) -> Source | None:
    """Return what ``training.init_from`` names, None without it; imports no torch.

    Raises:
        ConfigError: the folder holds no weights, or they belong to another vocabulary than the run's, or, of a
            checkpoint, to a model of other sizes.
    """
    if config.training.init_from is None:
        return None
    key, folder = f"training.init_from = {config.training.init_from}", Path(config.training.init_from)
    if not folder.is_dir():
        raise ConfigError(f"{key}: no such folder{searched(folder)}: name a run, a checkpoint or an export")
    try:
        source, fingerprint, model = look_into(folder)
    except (DamagedError, KeyError) as error:
        raise ConfigError(f"{key}: {error}") from None
    if source is None:
        raise ConfigError(f"{key} holds neither checkpoints nor {EXPORTED}: name a run, a checkpoint or an export")
    if fingerprint is None:
        raise ConfigError(f"{key} has no {MODEL_FILE} that could be compared with data.vocabulary: put it there")
    if fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{key} was trained with another vocabulary (fingerprint {fingerprint}) than data.vocabulary = "
            f"{config.data.vocabulary} ({tokenizer.fingerprint}): set data.vocabulary to the one of these weights"
        )
    here = config.model.model_dump()
    for name in SIZES:
        if model.get(name, here[name]) != here[name]:
            raise ConfigError(
                f"{key} has model.{name} = {model[name]}, and this run model.{name} = {here[name]}: set "
                f"model.{name}={model[name]}, or name other weights"
            )
    return source


def look_into(folder: Path) -> tuple[Source | None, str | None, dict[str, Any]]:
    """Return the weights of a folder, the fingerprint of their vocabulary, the model section of a checkpoint's run.

    Raises:
        ConfigError: the folder is a run without an intact checkpoint.
        DamagedError: it is a checkpoint that cannot be read.
    """
    if RunFolder(folder).has_checkpoint():
        checkpoint = read_checkpoint(folder, contents=False)
        state, source = checkpoint.state, Source(checkpoint.folder, folder, False)
        return source, state.data["identity"][VOCABULARY], state.config["model"]
    if (folder / MANIFEST_FILE).is_file():
        state, source = read_folder(folder).state, Source(folder, folder.resolve().parents[1], True)
        return source, state.data["identity"][VOCABULARY], state.config["model"]
    if (folder / EXPORTED).is_file() or (folder / f"{EXPORTED}.index.json").is_file():
        vocabulary = (folder / MODEL_FILE).is_file()
        return Source(folder, None, True), Tokenizer(folder).fingerprint if vocabulary else None, {}
    return None, None, {}


def open_source(source: Source, config: "StMoeConfig", key: str) -> Reader:
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
        from training.checkpoint.agreement import agree_on_checkpoint

        agreed = agree_on_checkpoint(source.run_dir, first=source.folder)
        if source.chosen and agreed.folder.resolve() != source.folder.resolve():
            raise ConfigError(f"{key} is damaged: name another checkpoint")
        reader = CheckpointWeights(agreed.folder)
    _check_shapes(reader.shapes, config, key)
    return reader


def load_weights(engine: Any, reader: Reader, config: RunConfig) -> None:
    """Give the engine the weights of a reader; collective. Raises ConfigError: they are not finite."""
    from training.checkpoint.finite import some, weights_not_finite
    from training.checkpoint.master_weights import refresh_weights
    from training.checkpoint.store.index import chunks
    from training.engine.parameters import engine_partitions

    for partition in engine_partitions(engine):
        weights = partition.tensor.detach().view(-1)
        for segment in partition.held():
            target, first = segment.view(weights), segment.elements.start
            for start, stop in chunks(first, segment.elements.stop):
                target[start - first : stop - first].copy_(reader.weight(segment.spec.name, start, stop))
    if bad := weights_not_finite(engine):
        raise ConfigError(f"training.init_from = {config.training.init_from}: not finite are {some(bad)}: name another")
    refresh_weights(engine)


def _check_shapes(shapes: dict[str, tuple[int, ...]], config: "StMoeConfig", key: str) -> None:
    """Raise ConfigError at the first parameter that is not the model's."""
    import torch

    from model.st_moe import StMoeForConditionalGeneration

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
        from training.checkpoint.store.index import TensorReader

        self.folder, self.reader = folder, TensorReader(folder)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``Reader``."""
        return {name: parameter.shape for name, parameter in self.reader.index.parameters.items()}

    def weight(self, name: str, start: int, stop: int) -> Any:
        """See ``Reader``."""
        from training.checkpoint.store.index import WEIGHT

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
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        index = folder / f"{EXPORTED}.index.json"
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
            names = sorted(set(weight_map.values())) or [EXPORTED]
            self.files = [safe_open(folder / name, framework="pt") for name in names]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{key} cannot be read: {error}") from None
        self.file_of = {key: file for file in self.files for key in file.keys()}  # noqa: SIM118
        self.last: tuple[str, Any] = ("", None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``Reader``."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self.file_of.items()}

    def weight(self, name: str, start: int, stop: int) -> Any:
        """See ``Reader``."""
        if self.last[0] != name:
            self.last = name, self.file_of[name].get_tensor(name).view(-1)
        return self.last[1][start:stop]
