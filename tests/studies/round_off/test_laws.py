"""The derived laws against hand-worked numbers, the bits of bf16, and draws."""

import math

import pytest
import torch

from studies.round_off.laws import flip_probability, paper_example, predict, spacing, worst_error_of_exp
from studies.round_off.measure import compare
from studies.round_off.rounding import REFERENCE, SOFTMAX_INPUT, decide


@pytest.mark.parametrize(
    ("x", "distance"), [(128.0, 1.0), (127.5, 0.5), (255.0, 1.0), (1.0, 2**-7), (-3.0, 2**-6), (0.0, 0.0)]
)
def test_spacing_by_hand(x: float, distance: float) -> None:
    assert spacing(torch.tensor(x, dtype=torch.float64)).item() == distance


def test_spacing_is_the_distance_to_the_next_number() -> None:
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)).exp() * 10).bfloat16()
    following = (x.view(torch.int16) + 1).view(torch.bfloat16)
    assert torch.equal(spacing(x.double()), following.double() - x.double())


def test_the_error_of_an_exponential_is_within_its_worst_and_comes_near_it() -> None:
    x = torch.linspace(1, 200, 20000, dtype=torch.float64)
    error = torch.expm1(x.bfloat16().double() - x).abs()
    worst = worst_error_of_exp(x)
    assert (error <= worst * (1 + 1e-12)).all()
    assert (error / worst).max() > 0.95
    assert (worst >= torch.expm1(x * 2**-9)).all()
    assert (worst <= torch.expm1(x * 2**-8)).all()


def test_the_papers_example() -> None:
    exact, rounded = paper_example()
    assert exact == pytest.approx(math.exp(0.5) / (math.exp(0.5) + 10))
    assert rounded == pytest.approx(1 / 11)
    assert 1 - rounded / exact == pytest.approx(0.36, abs=0.005)  # "36 %" in the paper


@pytest.mark.parametrize("margin", [0.1, 0.5, 0.9, 1.3])
def test_the_probability_of_a_flip_is_that_of_draws(margin: float) -> None:
    draws = 40000
    low = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 100
    ties = torch.round(low) == torch.round(low + margin)
    share = ties.double().mean().item() / 2  # the lower index wins a tie: the wrong one half of the time
    expected = flip_probability(torch.tensor(margin), torch.tensor(1.0)).item()
    assert share == pytest.approx(expected, abs=5 * 0.5 / math.sqrt(draws))


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (1.0, 20.0), (8.0, 100.0), (30.0, 0.0)])
def test_the_law_predicts_what_rounding_does(factor: float, offset: float) -> None:
    """Where the spacing is below the margins of most tokens: the law does not know of ties of three experts."""
    tokens = 40000
    logits = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(2)) * factor
    one = torch.eye(8)
    exact = decide(logits, one, 2, REFERENCE, offset=offset)
    rounded = decide(logits, one, 2, SOFTMAX_INPUT, offset=offset)
    found, law = compare(rounded, exact), predict(exact.logits_TE)
    for name, expected in law._asdict().items():
        assert found[name] == pytest.approx(expected, rel=0.12, abs=4 * math.sqrt(expected / tokens)), name


def test_a_larger_scale_alone_flips_no_more_choices_but_an_offset_does() -> None:
    logits, one = torch.randn(5000, 8, generator=torch.Generator().manual_seed(3)), torch.eye(8)

    def flips(factor: float, offset: float) -> float:
        decisions = [decide(logits, one, 2, p, factor=factor, offset=offset) for p in (SOFTMAX_INPUT, REFERENCE)]
        return compare(*decisions)["flips_first"]

    assert flips(1, 0) == flips(4, 0) == flips(16, 0)  # powers of two: the same bits but for the exponent
    assert flips(1, 100) > 10 * flips(1, 0)
