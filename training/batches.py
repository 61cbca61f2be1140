"""Batches on the device, and how many real tokens a global batch has."""

from typing import NamedTuple

import deepspeed.comm as dist
import numpy as np
import torch
from torch import Tensor

from model.losses import IGNORED_LABEL, TokenCounts


class GlobalCounts(NamedTuple):
    """Real tokens of a global batch."""

    mean: TokenCounts  # per rank and micro-batch: the divisors of the losses
    total: int  # encoder and decoder together


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


def count_tokens(batches: list[dict[str, Tensor]], pad_id: int) -> GlobalCounts:
    """Count real encoder and decoder tokens over all ranks' ``batches``; one small all-reduce."""
    encoder = torch.stack([(batch["input_ids"] != pad_id).sum() for batch in batches]).sum()
    decoder = torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum()
    totals = torch.stack((encoder, decoder)).double()
    dist.all_reduce(totals)
    parts = len(batches) * dist.get_world_size()
    mean = (totals / parts).float()
    return GlobalCounts(TokenCounts(mean[0], mean[1]), int(totals.sum()))
