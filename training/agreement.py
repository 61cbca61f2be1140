"""All ranks go on from the same checkpoint, every byte of which one of them has checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.comm as dist

from training.config import ConfigError
from training.manifest import DamagedError, check_contents, read_manifest
from training.saved_state import Checkpoint, candidates, read_folder, step_of


def agree_on_checkpoint(
    run_dir: Path, report: Callable[[str], None], first: Path | None = None, before: int | None = None
) -> Checkpoint:
    """The first of rank 0's candidates that is whole; collective over all ranks.

    The files are dealt to the ranks, and each checks the SHA-256 of its own.

    Args:
        run_dir: of the run.
        report: told why a checkpoint is refused, one line each; on every rank.
        first: rank 0's choice, tried before others.
        before: only checkpoints of an earlier step than this.

    Raises:
        ConfigError: there is none, or it is of another version of this program; on all ranks.
    """
    found = candidates(run_dir)
    if first is not None:
        found = [first, *(path for path in found if path != first)]
    listed: list[Any] = [[path for path in found if before is None or step_of(path) < before]]
    dist.broadcast_object_list(listed, src=0)
    reasons: list[str] = []
    for path in listed[0]:
        checkpoint, damage = _check_share(path)
        damages: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(damages, damage)
        found_damage = list(dict.fromkeys(text for text in damages if text))
        if not found_damage:
            assert checkpoint is not None
            return checkpoint
        report(f"checkpoint refused: {'; '.join(found_damage)}")
        reasons += found_damage
    why = f"({'; '.join(reasons)}): restore one from a copy" if reasons else "of an earlier step"
    raise ConfigError(f"{run_dir / 'checkpoints'} holds no checkpoint that is whole {why}")


def _check_share(path: Path) -> tuple[Checkpoint | None, str | None]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        # Files are sorted by size, so that dealing them in turn gives ranks about the same to read.
        check_contents(path, read_manifest(path)[rank::world_size])
        return read_folder(path), None
    except DamagedError as error:
        return None, str(error)
    except ConfigError as error:
        return None, str(error)
