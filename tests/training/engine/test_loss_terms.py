"""Micro-batches and ranks are reduced to one row."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

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


def reduce_domains(ranks: int) -> dict[str, float]:
    """Four examples, of which a rank has every second or all; the last has a target less."""
    import deepspeed.comm as dist

    from training.engine.loss_terms import MAXIMA, MEANS, LossTerms

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 11, generator=generator)
    labels = torch.randint(2, 11, (4, 3), generator=generator)
    labels[3, 2] = -100
    own = slice(dist.get_rank() % ranks, None, ranks)
    terms = LossTerms()
    output = StMoeOutput(**dict.fromkeys((*MEANS, *MAXIMA), torch.tensor(0.0)), logits=logits[own])
    if dist.get_rank() < ranks:
        terms.add_domains(output, labels[own], torch.tensor([1, 0, 1, 1])[own])
    else:
        terms.domains.append(torch.zeros(0, 3, dtype=torch.float64))
    terms.add(output)
    found = terms.reduce(StMoeConfig(), ["a", "b"])
    nats = functional.cross_entropy(logits.double().transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return {name: found[f"cross_entropy/{name}"] for name in "ab"} | {
        "expected a": (nats[1].sum() / 3).item(), "expected b": (nats[[0, 2, 3]].sum() / 8).item()
    }  # fmt: skip


def both_ways() -> list[dict[str, float]]:
    return [reduce_domains(1), reduce_domains(2)]


def test_the_cross_entropy_of_a_domain_is_that_of_its_examples_on_one_rank_and_on_two(tmp_path: Path):
    found = list(run_ranks(both_ways, 2, tmp_path))
    assert found[0] == found[1]
    one, two = found[0]
    assert one == two
    assert one["a"] == pytest.approx(one["expected a"], rel=1e-6)
    assert one["b"] == pytest.approx(one["expected b"], rel=1e-6)


def test_terms_are_means_and_logits_maxima_over_micro_batches_and_ranks(tmp_path: Path):
    for values in run_ranks(reduce_terms, 2, tmp_path):
        assert values["cross_entropy"] == values["router_z_loss"] == 3.5
        assert values["router_z_loss_weighted"] == pytest.approx(1.75)
        assert values["max_router_logit"] == 6.0
