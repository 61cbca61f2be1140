"""Batches on the device, and how many real tokens a global batch has."""

from collections.abc import Sequence
from typing import NamedTuple

import deepspeed.comm as dist
import numpy as np
import torch
from torch import Tensor

from model.losses import IGNORED_LABEL, LossDivisors


class GlobalCounts(NamedTuple):
    """Real tokens of a global batch."""

    mean: LossDivisors  # per rank and micro-batch: the divisors of the losses
    total: int  # encoder and decoder together
    flags: tuple[int, ...]  # sums over ranks of what was asked to be summed along


def to_device(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """``input_ids [B, L]`` and ``labels [B, M]``, int64, as tensors on ``device``."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.startswith("cuda"):
        # Only a copy from pinned memory runs beside the computation.
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return tensors


def sum_over_ranks(counts: dict[str, int], device: str) -> dict[str, int]:
    """Totals of counts that every rank has under the same names; one small all-reduce."""
    totals = torch.tensor(list(counts.values()), dtype=torch.int64, device=device)
    dist.all_reduce(totals)
    return dict(zip(counts, totals.tolist(), strict=True))


def count_tokens(batches: list[dict[str, Tensor]], pad_id: int, flags: Sequence[int] = ()) -> GlobalCounts:
    """Count real encoder and decoder tokens over all ranks' ``batches``; one small all-reduce.

    Args:
        batches: of this rank.
        pad_id: of the inputs.
        flags: as many small numbers on every rank, to be summed along at no further cost.
    """
    encoder = torch.stack([(batch["input_ids"] != pad_id).sum() for batch in batches]).sum()
    decoder = torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum()
    totals = torch.stack((encoder, decoder)).double()
    totals = torch.cat((totals, torch.tensor(flags, dtype=totals.dtype, device=totals.device)))
    dist.all_reduce(totals)
    parts = len(batches) * dist.get_world_size()
    mean = (totals / parts).float()
    encoder_total, decoder_total, *sums = map(int, totals.tolist())
    return GlobalCounts(LossDivisors(mean[0], mean[1]), encoder_total + decoder_total, tuple(sums))
