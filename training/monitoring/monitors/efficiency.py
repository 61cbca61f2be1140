"""Model FLOPs per second, their share of the device's peak, and memory."""

import resource
from collections.abc import Sequence
from pathlib import Path

import deepspeed.comm as dist
import torch
from torch import Tensor

from model.config import StMoeConfig
from model.flops import forward_flops
from model.moe.statistics import SUMS
from training.engine.loss_terms import LossTerms
from training.engine.shares import Reduced, Share, share
from training.monitoring.monitors.base import PassiveMonitor
from training.monitoring.monitors.peaks import Peak
from training.monitoring.monitors.throughput import Throughput

PAGE_BYTES = resource.getpagesize()


class Efficiency(PassiveMonitor):
    """``model_tflops``, ``mfu``, ``peak_tflops`` and memory of a row.

    Counted is the useful work of the logged step: forward and backward pass once, without recomputation, of the rows
    that experts were given a token in. It is unknown of a sparse model whose routers were not observed.

    Args:
        config: the model's.
        device: of this rank.
        peak: of the device.
        throughput: which makes its columns of the row before this monitor.
    """

    def __init__(self, config: StMoeConfig, device: str, peak: Peak, throughput: Throughput):
        self.config, self.device, self.peak, self.throughput = config, torch.device(device), peak, throughput
        self.shapes: list[tuple[int, int, int]] = []
        self.sparse = bool(config.sparse_layer_names())

    def count(self, batches: Sequence[dict[str, Tensor]]) -> None:
        """Note the shapes of a step's micro-batches on this rank."""
        self.shapes = [(*batch["input_ids"].shape, batch["labels"].shape[1]) for batch in batches]

    def share(self, terms: LossTerms) -> Share:
        """Return this rank's FLOPs outside of experts, its served rows of experts, and its memory."""
        rest = sum(forward_flops(self.config, *shape, expert_rows=0).training() for shape in self.shapes)
        zero = torch.zeros((), dtype=torch.float64)
        served = torch.stack(terms.routers)[..., SUMS.index("served_rows")].sum() if terms.routers else zero
        sums = torch.stack((torch.tensor(float(rest), dtype=torch.float64).to(served.device), served))
        return Share(sums, share(maxima=self.memory()).maxima)

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return the columns: rates of the mean rank, memory of the rank that has most."""
        rest, served = reduced.sums
        memory, most = reduced.maxima
        row: dict[str, float] = {"memory_bytes": int(memory), "peak_memory_bytes": int(most)}
        if self.sparse and not served:
            return row
        of_experts = forward_flops(self.config, 0, 0, 0, expert_rows=served).training()
        rate = (rest + of_experts) / dist.get_world_size() / self.throughput.step_seconds
        peak = self.peak.flops_per_second
        return row | {"model_tflops": rate / 1e12, "mfu": rate / peak, "peak_tflops": peak / 1e12}

    def memory(self) -> tuple[float, float]:
        """Return this rank's bytes now and at most: of tensors on the device, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
        return now, max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
