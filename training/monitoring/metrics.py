"""Rows of metrics: from the model's outputs to ``metrics.jsonl`` and TensorBoard."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.config import StMoeConfig
from model.st_moe import StMoeOutput

PARTS = (
    "loss",
    "cross_entropy",
    "load_balance_loss",
    "router_z_loss",
    "output_z_loss",
    "dropped_fraction",
)
MAXIMA = ("max_router_logit",)
COEFFICIENTS = {
    "load_balance_loss": "load_balance_coefficient",
    "router_z_loss": "router_z_coefficient",
    "output_z_loss": "output_z_coefficient",
}


class PartsMean:
    """Mean of the objective's parts, and the largest of the maxima, over micro-batches and, at the end, over ranks."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.maxima: list[Tensor] = []

    def add(self, output: StMoeOutput) -> None:
        """Keep one micro-batch's scalars on the device."""
        self.outputs.append(torch.stack([output[name].detach().float() for name in PARTS]))
        self.maxima.append(torch.stack([output[name].detach().float() for name in MAXIMA]))

    def reduce(self, config: StMoeConfig) -> dict[str, float]:
        """Unweighted parts under their own names, weighted ones with ``_weighted``; two small all-reduces."""
        mean, largest = torch.stack(self.outputs).double().mean(0), torch.stack(self.maxima).double().amax(0)
        dist.all_reduce(mean)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        values = dict(zip(PARTS, (mean / dist.get_world_size()).tolist(), strict=True))
        values |= dict(zip(MAXIMA, largest.tolist(), strict=True))
        for name, coefficient in COEFFICIENTS.items():
            values[f"{name}_weighted"] = getattr(config, coefficient) * values[name]
        return values


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and TensorBoard; for rank 0.

    A disk that is full ends no run here: rows wait in memory until there is room; TensorBoard may lack some.

    Args:
        run_dir: the run's folder.
        resume_step: of the checkpoint from which the run goes on. None: a new run.
        resume_bytes: length of the file when that checkpoint was made. Later rows are of a future that the checkpoint
            does not know: they are removed, since the run will write them again.
    """

    def __init__(self, run_dir: Path, resume_step: int | None, resume_bytes: int = 0):
        self.path = run_dir / "metrics.jsonl"
        if self.path.exists():
            self._forget_after(resume_bytes)
        self.file = self.path.open("ab", buffering=0)
        self.waiting = b""
        self.board = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    def write(self, row: dict[str, Any]) -> None:
        """One JSON object on a line of its own, flushed; to TensorBoard, under the split's name, numbers and texts."""
        self.waiting += json.dumps(row).encode() + b"\n"
        size = self.nbytes
        try:
            written = self.file.write(self.waiting)
            if written == len(self.waiting):
                self.waiting = b""
            else:
                os.truncate(self.path, size)  # no half a row
        except OSError as error:
            print(f"warning: {self.path}: {error}; rows wait in memory", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            self._write_board(row)

    def _write_board(self, row: dict[str, Any]) -> None:
        split = row.get("split", "train")
        for name, value in row.items():
            if name not in ("step", "split") and isinstance(value, int | float):
                self.board.add_scalar(f"{split}/{name}", value, row["step"])
            elif name not in ("step", "split") and isinstance(value, str):
                self.board.add_text(f"{split}/{name}", value, row["step"])
        self.board.flush()

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        with contextlib.suppress(OSError):
            self.board.close()

    @property
    def nbytes(self) -> int:
        """Length of ``metrics.jsonl``."""
        return self.path.stat().st_size

    def _forget_after(self, size: int) -> None:
        kept = []
        for line in self.path.read_bytes()[:size].splitlines(keepends=True):
            try:
                json.loads(line)
            except ValueError:  # the line that a crash cut off
                continue
            kept.append(line)
        temporary = self.path.with_name(".metrics.jsonl.tmp")
        with temporary.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
