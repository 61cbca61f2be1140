"""Finds what ``training.init_from`` names, and what its weights were trained with; imports no torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from common.paths import no_folder
from data.streaming.identity import VOCABULARY
from data.tokenizer import MODEL_FILE, Tokenizer
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.store.best import resolved
from training.checkpoint.store.manifest import MANIFEST_FILE, DamagedError
from training.checkpoint.store.state import SavedState, read_folder
from training.config.errors import ConfigError
from training.run.folder import RunFolder
from training.run.kept_inputs import kept_vocabulary

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # of an export


class Source(NamedTuple):
    """A folder with weights, and the configuration that they were trained with."""

    folder: Path  # of a checkpoint or of an export
    run_dir: Path | None  # of the checkpoint's run; None: an export
    chosen: bool  # whether the user named the checkpoint itself
    sections: dict[str, Any]  # plain values, as of the run's YAML file; of an export only ``model``
    fingerprint: str | None  # of the vocabulary; None: an export without one
    state: SavedState | None  # of the checkpoint

    @property
    def vocabulary(self) -> Path | None:
        """A folder that holds the vocabulary, if it is known."""
        if self.run_dir is None:
            return self.folder if self.fingerprint else None
        return kept_vocabulary(self.run_dir) or Path(self.sections["data"]["vocabulary"])


def look_into(folder: Path, key: str) -> Source:
    """Return the weights in a folder.

    Args:
        folder: of a run (its newest intact checkpoint), a checkpoint, also ``checkpoints/best``, or an export.
        key: setting and value that name it, for messages.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    try:
        folder = resolved(folder)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    if not folder.is_dir():
        raise ConfigError(no_folder(folder, key, "name a run, a checkpoint or an export"))
    try:
        if RunFolder(folder).has_checkpoint():
            checkpoint = read_checkpoint(folder, contents=False)
            return _of_checkpoint(checkpoint.folder, checkpoint.state, folder, chosen=False)
        if (folder / MANIFEST_FILE).is_file():
            return _of_checkpoint(folder, read_folder(folder).state, folder.resolve().parents[1], chosen=True)
    except (DamagedError, KeyError) as error:
        raise ConfigError(f"{key}: {error}") from None
    if not any((folder / file).is_file() for file in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")):
        raise ConfigError(f"{key} holds neither checkpoints nor {WEIGHTS_FILE}: name a run, a checkpoint or an export")
    return _of_export(folder, key)


def _of_checkpoint(folder: Path, state: SavedState, run_dir: Path, *, chosen: bool) -> Source:
    return Source(folder, run_dir, chosen, state.config, state.data["identity"][VOCABULARY], state)


def _of_export(folder: Path, key: str) -> Source:
    try:
        model = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = model.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key} has no {CONFIG_FILE} that can be read: name a complete export ({error})") from None
    if kind != "st_moe":
        raise ConfigError(f"{key} holds a model of type {kind}, not st_moe: name an export of this project")
    fingerprint = Tokenizer(folder, setting="training.init_from").fingerprint if _has_vocabulary(folder) else None
    return Source(folder, None, True, {"model": model}, fingerprint, None)


def _has_vocabulary(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file()
