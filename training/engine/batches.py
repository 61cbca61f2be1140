"""Batches on the device, and the sums over ranks that a step starts with."""

from collections.abc import Mapping

import deepspeed.comm as dist
import numpy as np
import torch
from torch import Tensor

from model.losses import IGNORED_LABEL, LossDivisors


class StepTotals:
    """Sums over all ranks at the start of a step, on the device at once and on the host when they are asked for.

    Args:
        divisors: real tokens per rank and micro-batch.
        totals: real encoder tokens, real decoder tokens and the signals, float64.
        names: of the signals.
    """

    def __init__(self, divisors: LossDivisors, totals: Tensor, names: list[str]):
        self.divisors, self._names = divisors, names
        self._arrived: torch.cuda.Event | None = None
        if totals.is_cuda:
            self._totals = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
            self._totals.copy_(totals, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._totals = totals

    def _read(self) -> list[int]:
        if self._arrived is not None:
            self._arrived.synchronize()  # waits for the sums alone, not for what was launched after them
        return [int(total) for total in self._totals.tolist()]

    @property
    def tokens(self) -> int:
        """Real tokens of the global batch, encoder and decoder together."""
        return sum(self._read()[:2])

    @property
    def signals(self) -> dict[str, int]:
        """The signals, summed over the ranks."""
        return dict(zip(self._names, self._read()[2:], strict=True))


def to_device(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Return ``input_ids [B, L]``, ``labels [B, M]`` and what else a batch has, int64, as tensors on ``device``."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {name: _moved(tensor, device) for name, tensor in tensors.items()}


def _moved(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Copy to the device without waiting for it: only a copy from pinned memory overlaps with compute."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def sum_over_ranks(counts: Mapping[str, int], device: str) -> dict[str, int]:
    """Return totals of counts that every rank has under the same names; one small all-reduce."""
    totals = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    dist.all_reduce(totals)
    return dict(zip(counts, totals.tolist(), strict=True))


def total_over_ranks(
    batches: list[dict[str, Tensor]], pad_id: int, signals: Mapping[str, int] | None = None
) -> StepTotals:
    """Count the real encoder and decoder tokens of all ranks' ``batches``; one small all-reduce, and no wait for it.

    Args:
        batches: micro-batches of this rank.
        pad_id: of the inputs.
        signals: small numbers, under the same names on every rank, that are summed in the same all-reduce.
    """
    signals = signals or {}
    encoder = torch.stack([(batch["input_ids"] != pad_id).sum() for batch in batches]).sum()
    decoder = torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum()
    own = _moved(torch.tensor(list(signals.values()), dtype=torch.float64), encoder.device)
    totals = torch.cat((torch.stack((encoder, decoder)).double(), own))
    dist.all_reduce(totals)
    mean = (totals / (len(batches) * dist.get_world_size())).float()
    return StepTotals(LossDivisors(mean[0], mean[1]), totals, list(signals))
