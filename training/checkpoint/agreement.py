"""All ranks resume from the same checkpoint, every byte of which one of them has checked."""

from pathlib import Path
from typing import Any

import deepspeed.comm as dist

from common.logs import get_logger
from training.checkpoint.finite import check_files_finite
from training.checkpoint.gathering import joined_on_all
from training.checkpoint.store.manifest import DamagedError, check_contents, read_manifest
from training.checkpoint.store.state import Checkpoint, candidates, read_folder, step_of
from training.config.errors import ConfigError
from training.run.folder import RunFolder

logger = get_logger(__name__)


def agree_on_checkpoint(run_dir: Path, first: Path | None = None, before: int | None = None) -> Checkpoint:
    """Return the first intact one of rank 0's candidates; collective over all ranks.

    The files are dealt to the ranks, each of which checks the SHA-256 of its own, and that their numbers are finite.
    Checkpoints that fail cause a warning.

    Args:
        run_dir: of the run.
        first: rank 0's choice, tried before others.
        before: only checkpoints of an earlier step than this.

    Raises:
        ConfigError: there is none; on all ranks.
    """
    found = candidates(run_dir)
    if first is not None:
        found = [first, *(path for path in found if path != first)]
    listed: list[Any] = [[path for path in found if before is None or step_of(path) < before]]
    dist.broadcast_object_list(listed, src=0)
    reasons: list[str] = []
    for path in listed[0]:
        checkpoint, damage = _check_share(path)
        found_damage = joined_on_all(damage, lambda damages: list(dict.fromkeys(text for text in damages if text)))
        if not found_damage:
            assert checkpoint is not None
            return checkpoint
        logger.warning("checkpoint refused: %s", "; ".join(found_damage))
        reasons += found_damage
    which = "intact checkpoint" if before is None else f"intact checkpoint of a step before {before}"
    why = f" ({'; '.join(reasons)}): restore one from a copy" if reasons else ""
    raise ConfigError(f"{RunFolder(run_dir).checkpoints} holds no {which}{why}")


def _check_share(path: Path) -> tuple[Checkpoint | None, str | None]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        # Files are sorted by size, so that dealing them in turn gives ranks about the same to read.
        share = read_manifest(path)[rank::world_size]
        check_contents(path, share)
        check_files_finite(path, share)
        return read_folder(path), None
    except (DamagedError, ConfigError) as error:
        return None, str(error)
