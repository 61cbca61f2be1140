"""Writes a checkpoint in the background: training waits only until its tensors are copied to host memory.

A thread of each rank writes that rank's files; when all ranks have agreed that theirs are on disk, a thread of rank 0
adds index, state and manifest and publishes the folder. Threads touch files alone: collectives, and so every decision,
belong to the main thread, and ride on the sums that a step makes anyway (``signals``). DeepSpeed's own asynchronous
checkpoint engines are not used: they write the engine's files, which load only at the layout they were written at.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed.comm as dist

from training.checkpoint.capture import Capture, Moment, capture, write_files, write_rest
from training.checkpoint.finite import NotFiniteError, not_finite_on_any_rank, some
from training.checkpoint.gathering import gather_on_rank_0, joined_on_all
from training.checkpoint.host_copies import HostCopies
from training.checkpoint.store.best import Best, write_best
from training.checkpoint.store.manifest import FileRecord
from training.checkpoint.store.publish import partial_folder, prune, publish, remove_abandoned
from training.config.run import RunConfig
from training.engine.batches import sum_over_ranks
from training.run.folder import RunFolder

LONGEST_JOIN_SECONDS = 1.0


class Saved(NamedTuple):
    """The outcome of a save."""

    folder: Path
    step: int
    stall_seconds: float  # that training waited
    seconds: float  # from the start until it was published
    nbytes: int  # of this rank's tensors
    error: str | None
    pruned: list[str]
    best: Best  # with it


class _Job:
    """One checkpoint on its way to disk."""

    def __init__(self, captured: Capture, folder: Path, began: float, best: Best):
        self.captured, self.folder, self.began, self.best = captured, folder, began, best
        self.stall_seconds = 0.0
        self.records: list[FileRecord] = []
        self.publishing = False
        self.error: str | None = None
        self.pruned: list[str] = []
        self.thread: threading.Thread | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a thread that does not keep the process alive."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"

        self.thread = threading.Thread(target=guarded, daemon=True, name="checkpoint writer")
        self.thread.start()

    @property
    def busy(self) -> bool:
        """Whether its thread is running."""
        return self.thread is not None and self.thread.is_alive()


class Saver:
    """Writes one checkpoint at a time. All methods but ``signals`` are collective over all ranks.

    Args:
        config: of the run.
        device: of this rank.
    """

    def __init__(self, config: RunConfig, device: str):
        self.config, self.device = config, device
        self.folder = RunFolder(config.run_dir)
        self.copies = HostCopies()
        self.job: _Job | None = None
        self.abandoned = remove_abandoned(self.folder.checkpoints) if dist.get_rank() == 0 else []
        dist.barrier()

    def start(self, engine: Any, moment: Moment, best: Best | None = None) -> None:
        """Begin a checkpoint; the one before must be finished.

        Args:
            engine: the DeepSpeed engine.
            moment: the position of the run.
            best: the best checkpoints once it is published.

        Raises:
            ValueError: the optimizer keeps state that a checkpoint cannot hold.
            NotFiniteError: a weight or the optimizer's state is not finite, on any rank; nothing is written.
        """
        assert self.job is None, "wait for the last save first"
        began = time.monotonic()
        captured = capture(engine, self.config, moment)
        tensors = {name: tensor for of_file in captured.files.values() for name, tensor in of_file.items()}
        if bad := not_finite_on_any_rank(tensors, self.device):
            raise NotFiniteError(f"weights or optimizer state are not finite at step {moment.step}: {some(bad)}")
        if self.config.training.save_in_background:
            captured = self.copies.copy(captured)
        folder = self.folder.checkpoint(moment.step)
        job = self.job = _Job(captured, folder, began, best or Best())

        def write() -> None:
            partial_folder(folder).mkdir(parents=True, exist_ok=True)  # every rank tries, whoever is first
            job.records = write_files(captured, partial_folder(folder))

        job.run(write)
        job.stall_seconds = time.monotonic() - began

    def signals(self) -> dict[str, int]:
        """Return whether this rank is still writing, and whether it failed: to be summed over ranks for ``advance``."""
        busy = self.job is not None and self.job.busy
        failed = self.job is not None and not busy and self.job.error is not None
        return {"save_busy": int(busy), "save_failed": int(failed)}

    def advance(self, totals: Mapping[str, int]) -> Saved | None:
        """Take the next step that all ranks are ready for.

        Args:
            totals: ``signals`` summed over ranks.

        Returns:
            The outcome, when the checkpoint is published or given up.
        """
        job = self.job
        if job is None or totals["save_busy"]:
            return None
        failed = totals["save_failed"] > 0
        if failed or job.publishing:
            return self._finish(job, failed)
        job.publishing = True
        records = gather_on_rank_0(job.records)  # one rank writes the manifest
        if records is not None:
            gathered = [record for of_rank in records for record in of_rank]
            job.run(lambda: self._publish(job, gathered))
        return None

    def wait(self, alive: Callable[[], None] = lambda: None) -> Saved | None:
        """Wait until no checkpoint is being written, and return the outcome.

        Args:
            alive: called about once a second, on all ranks alike.
        """
        saved = None
        while self.job is not None:
            if self.job.thread is not None:
                self.job.thread.join(LONGEST_JOIN_SECONDS)  # all ranks meet in between, so that none seems to hang
            alive()
            saved = self.advance(sum_over_ranks(self.signals(), self.device))
        return saved

    def _publish(self, job: _Job, records: list[FileRecord]) -> None:
        write_rest(job.captured, partial_folder(job.folder), records)
        publish(job.folder)
        self.folder.set_latest(job.folder)
        t = self.config.training
        if job.best.entries:
            write_best(self.folder.path, job.best)
        if t.keep_checkpoints is not None:
            job.pruned = prune(job.folder, t.keep_checkpoints, t.keep_every, job.best.steps)

    def _finish(self, job: _Job, failed: bool) -> Saved:
        error = None
        if failed:
            error = joined_on_all(job.error, _describe)
            if dist.get_rank() == 0:
                shutil.rmtree(partial_folder(job.folder), ignore_errors=True)
            dist.barrier()  # no rank begins the next checkpoint in a folder that is being removed
        self.job = None
        seconds = time.monotonic() - job.began
        stall = job.stall_seconds if self.config.training.save_in_background else seconds
        return Saved(
            job.folder, job.captured.state.step, stall, seconds, job.captured.nbytes, error, job.pruned, job.best
        )


def _describe(errors: list[str | None]) -> str:
    """One line of what failed on which rank; where several ranks say the same, once."""
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(errors):
        if text:
            ranks.setdefault(text, []).append(rank)
    return "; ".join(f"rank {', '.join(map(str, which))}: {text}" for text, which in ranks.items())
