"""Micro-batches and ranks are reduced to one row."""

from pathlib import Path

import pytest
import torch

from model.config import StMoeConfig
from model.st_moe import StMoeOutput
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.distributed


def reduce_terms() -> dict[str, float]:
    import deepspeed.comm as dist

    from training.engine.loss_terms import MAXIMA, MEANS, LossTerms

    terms = LossTerms()
    for micro in range(2):
        value = torch.tensor(1.0 + 4 * dist.get_rank() + micro)  # rank 0: 1, 2; rank 1: 5, 6
        terms.add(StMoeOutput(**dict.fromkeys((*MEANS, *MAXIMA), value)))
    return terms.reduce(StMoeConfig(router_z_coefficient=0.5))


def test_terms_are_means_and_logits_maxima_over_micro_batches_and_ranks(tmp_path: Path):
    for values in run_ranks(reduce_terms, 2, tmp_path):
        assert values["cross_entropy"] == values["router_z_loss"] == 3.5
        assert values["router_z_loss_weighted"] == pytest.approx(1.75)
        assert values["max_router_logit"] == 6.0
