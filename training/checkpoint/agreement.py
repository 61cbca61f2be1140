"""All ranks go on from the same checkpoint, every byte of which one of them has checked."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.comm as dist

from training.checkpoint.store.manifest import DamagedError, check_contents, read_manifest
from training.checkpoint.store.state import Checkpoint, candidates, check_fits, read_folder, step_of
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.inputs import Inputs
from training.run.process import Process


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


def resume_together(config: RunConfig, process: Process, inputs: Inputs) -> Checkpoint | None:
    """The checkpoint that all ranks go on from, if any; the data are set to it where ``preflight`` chose another one.

    Raises:
        ConfigError: none is whole, or the run cannot go on from it.
    """

    def warn(line: str) -> None:
        if process.rank == 0:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    chosen = inputs.resume_from
    if chosen is None:
        return None
    agreed = agree_on_checkpoint(config.run_dir, warn, first=chosen.folder)
    if agreed != chosen:
        check_fits(agreed, config, process.world_size, inputs.zero_stage)
        inputs.loader.load_state_dict(agreed.state.data)
        inputs.loader.start()
    return agreed


def _check_share(path: Path) -> tuple[Checkpoint | None, str | None]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        # Files are sorted by size, so that dealing them in turn gives ranks about the same to read.
        check_contents(path, read_manifest(path)[rank::world_size])
        return read_folder(path), None
    except (DamagedError, ConfigError) as error:
        return None, str(error)
