"""Writes checkpoints beside the training, which waits only until its tensors are copied to host memory.

A thread of each rank writes that rank's files; when all ranks have agreed that theirs are on disk, a thread of rank 0
adds index, state and manifest and gives the folder its name. Threads touch files alone: collectives, and so every
decision, are the main thread's, and ride on the sums that a step makes anyway (``flags``). DeepSpeed's own asynchronous
checkpoint engines are not used: they write the engine's files, which load only at the layout they were written at.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed.comm as dist
import torch

from common.exit_codes import SAVE_FAILED, RunError
from training.checkpoint.capture import Capture, HostCopies, Moment, capture, write_files, write_rest
from training.checkpoint.store.manifest import FileRecord
from training.checkpoint.store.publish import partial_folder, prune, publish, remove_abandoned, set_latest
from training.checkpoint.store.state import checkpoints_dir
from training.config.run import RunConfig

LONGEST_JOIN_SECONDS = 1.0


class SaveError(RunError):
    """A checkpoint could not be written."""

    code = SAVE_FAILED


class Saved(NamedTuple):
    """What came of a save."""

    folder: Path
    step: int
    stall_seconds: float  # that training waited
    seconds: float  # from the beginning until it was published
    nbytes: int  # of this rank's tensors
    error: str | None
    pruned: list[str]


class _Job:
    """One checkpoint on its way to disk."""

    def __init__(self, captured: Capture, folder: Path, began: float):
        self.captured, self.folder, self.began = captured, folder, began
        self.stall_seconds = 0.0
        self.records: list[FileRecord] = []
        self.publishing = False
        self.error: str | None = None
        self.pruned: list[str] = []
        self.thread: threading.Thread | None = None

    def run(self, work: Callable[[], None]) -> None:
        """``work`` on a thread that does not keep the process alive."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"

        self.thread = threading.Thread(target=guarded, daemon=True, name="checkpoint writer")
        self.thread.start()

    @property
    def busy(self) -> bool:
        """Whether its thread still works."""
        return self.thread is not None and self.thread.is_alive()


class Saver:
    """All methods but ``flags`` and ``saving`` are collective over all ranks.

    Args:
        config: of the run.
        device: of this rank.
    """

    def __init__(self, config: RunConfig, device: str):
        self.config, self.device = config, device
        self.copies = HostCopies()
        self.job: _Job | None = None
        self.abandoned = remove_abandoned(checkpoints_dir(config.run_dir)) if dist.get_rank() == 0 else []
        dist.barrier()

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is on its way; the same on all ranks."""
        return self.job is not None

    def start(self, engine: Any, moment: Moment) -> None:
        """Begin a checkpoint; none may be on its way.

        Raises:
            ValueError: the optimizer keeps what a checkpoint cannot hold.
        """
        assert self.job is None, "the last save must be waited for"
        began = time.monotonic()
        captured = capture(engine, self.config, moment)
        if self.config.training.save_in_background:
            captured = self.copies.copy(captured)
        folder = checkpoints_dir(self.config.run_dir) / f"step_{moment.step:08d}"
        job = self.job = _Job(captured, folder, began)

        def write() -> None:
            partial_folder(folder).mkdir(parents=True, exist_ok=True)  # every rank makes it, whoever is first
            job.records = write_files(captured, partial_folder(folder))

        job.run(write)
        job.stall_seconds = time.monotonic() - began

    def flags(self) -> tuple[int, int]:
        """Whether this rank still writes, and whether it failed: to be summed over ranks for ``advance``."""
        if self.job is None:
            return 0, 0
        busy = self.job.busy
        return int(busy), int(not busy and self.job.error is not None)

    def advance(self, busy: int, failed: int) -> Saved | None:
        """Go on with what all ranks are ready for.

        Args:
            busy, failed: sums of ``flags`` over ranks.

        Returns:
            What came of the checkpoint, when it is published or given up.
        """
        job = self.job
        if job is None or busy:
            return None
        if failed or job.publishing:
            return self._finish(job, failed)
        job.publishing = True
        records: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(records, job.records)
        if dist.get_rank() == 0:
            job.run(lambda: self._publish(job, [record for part in records for record in part]))
        return None

    def wait(self, alive: Callable[[], None] = lambda: None) -> Saved | None:
        """Until nothing is on its way; what came of it.

        Args:
            alive: called once in a while, on all ranks alike.
        """
        saved = None
        while self.job is not None:
            if self.job.thread is not None:
                self.job.thread.join(LONGEST_JOIN_SECONDS)  # all ranks meet in between, so that none seems to hang
            alive()
            flags = torch.tensor(self.flags(), device=self.device)
            dist.all_reduce(flags)
            saved = self.advance(*flags.tolist())
        return saved

    def _publish(self, job: _Job, records: list[FileRecord]) -> None:
        write_rest(job.captured, partial_folder(job.folder), records)
        publish(job.folder)
        set_latest(job.folder)
        t = self.config.training
        if t.keep_checkpoints is not None:
            job.pruned = prune(job.folder, t.keep_checkpoints, t.keep_every)

    def _finish(self, job: _Job, failed: int) -> Saved:
        error = None
        if failed:
            errors: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(errors, job.error)
            error = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(errors) if text)
            if dist.get_rank() == 0:
                shutil.rmtree(partial_folder(job.folder), ignore_errors=True)
            dist.barrier()  # nobody begins the next one in a folder that is being removed
        self.job = None
        seconds = time.monotonic() - job.began
        step = job.captured.state.step
        stall = job.stall_seconds if self.config.training.save_in_background else seconds
        return Saved(job.folder, step, stall, seconds, job.captured.nbytes, error, job.pruned)


def save_checkpoint(engine: Any, config: RunConfig, moment: Moment) -> Path:
    """Write a checkpoint and wait for it; collective over all ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        SaveError: it could not be written.
    """
    saver = Saver(config, str(engine.device))
    saver.start(engine, moment)
    saved = saver.wait()
    assert saved is not None
    if saved.error is not None:
        raise SaveError(f"{saved.folder} could not be written: {saved.error}")
    return saved.folder
