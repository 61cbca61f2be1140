"""Batches on the device, and the sums over ranks that a step starts with."""

from collections.abc import Mapping
from typing import NamedTuple

import deepspeed.comm as dist
import numpy as np
import torch
from torch import Tensor

from model.losses import IGNORED_LABEL, LossDivisors


class StepTotals(NamedTuple):
    """Sums over all ranks at the start of a step."""

    divisors: LossDivisors  # real tokens per rank and micro-batch
    tokens: int  # real tokens of the global batch, encoder and decoder together
    signals: dict[str, int]


def to_device(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Return ``input_ids [B, L]`` and ``labels [B, M]``, int64, as tensors on ``device``."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.startswith("cuda"):
        # Only a copy from pinned memory overlaps with compute.
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return tensors


def sum_over_ranks(counts: Mapping[str, int], device: str) -> dict[str, int]:
    """Return totals of counts that every rank has under the same names; one small all-reduce."""
    totals = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    dist.all_reduce(totals)
    return dict(zip(counts, totals.tolist(), strict=True))


def total_over_ranks(
    batches: list[dict[str, Tensor]], pad_id: int, signals: Mapping[str, int] | None = None
) -> StepTotals:
    """Count the real encoder and decoder tokens of all ranks' ``batches``; one small all-reduce.

    Args:
        batches: micro-batches of this rank.
        pad_id: of the inputs.
        signals: small numbers, under the same names on every rank, that are summed in the same all-reduce.
    """
    signals = signals or {}
    encoder = torch.stack([(batch["input_ids"] != pad_id).sum() for batch in batches]).sum()
    decoder = torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum()
    totals = torch.stack((encoder, decoder)).double()
    own = torch.tensor(list(signals.values()), dtype=totals.dtype, device=totals.device)
    totals = torch.cat((totals, own))
    dist.all_reduce(totals)
    mean = (totals / (len(batches) * dist.get_world_size())).float()
    encoder_total, decoder_total, *sums = map(int, totals.tolist())
    divisors = LossDivisors(mean[0], mean[1])
    return StepTotals(divisors, encoder_total + decoder_total, dict(zip(signals, sums, strict=True)))
