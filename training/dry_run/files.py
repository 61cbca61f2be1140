"""The files of a checkpoint: those that a rank writes, with their sizes, and those that rank 0 adds."""

from dataclasses import dataclass
from typing import Any

from training.checkpoint.capture import own_files
from training.checkpoint.optimizer_state.registry import state_format
from training.checkpoint.store.index import INDEX_FILE
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.checkpoint.store.state import STATE_FILE
from training.checkpoint.store.tensor_file import announced, file_bytes
from training.config.run import RunConfig
from training.run.folder import RunFolder


@dataclass(frozen=True)
class Files:
    """A checkpoint as one rank sees it."""

    folder: str  # of the last step
    own: dict[str, int]  # file of this rank → bytes
    added: list[str]  # by rank 0, when all ranks' files are on disk

    def as_row(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {"folder": self.folder, "own_bytes": self.own, "added": self.added}


def files_of(engine: Any, config: RunConfig) -> Files:
    """Return the files of a checkpoint of the engine of a fake rank, after a step."""
    _, rank_file, extra = own_files(engine, config)
    return Files(
        folder=str(RunFolder(config.run_dir).checkpoints / f"step_{config.training.steps:08d}"),
        own={file: file_bytes(announced(tensors)) for file, tensors in (rank_file | extra).items()},
        added=[INDEX_FILE, *state_format(config.optimizer.name).index([]), STATE_FILE, MANIFEST_FILE],
    )
