"""Numbers drawn in blocks and by threads are torch's own."""

import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Generator, Tensor, nn

from model.draws import blocks, threads
from model.draws.blocks import draw
from model.draws.distributions import Constant, Distribution, Draw, Normal
from model.draws.threads import draw_all

SEED = 2**62 + 12345  # seeds have 63 bits


def reference(distribution: Distribution, size: int, seed: int) -> Tensor:
    """The numbers of torch's functions for a whole tensor."""
    generator, numbers = Generator().manual_seed(seed), torch.empty(size)
    if isinstance(distribution, Constant):
        return numbers.fill_(distribution.value)
    std = distribution.std
    if distribution.truncated:
        return nn.init.trunc_normal_(numbers, std=std, a=-2 * std, b=2 * std, generator=generator)
    return numbers.normal_(0.0, std, generator=generator)


@pytest.mark.parametrize("distribution", [Normal(0.0279, truncated=True), Normal(1.0)])
@pytest.mark.parametrize("block", [16, 64, 4096, blocks.BLOCK])
def test_blocks_change_no_bit(distribution: Normal, block: int) -> None:
    """For sizes around whole blocks, and around groups of 16, whose rest torch draws anew."""
    sizes = {1, 7, 15, 16, 17, 1000, 100_003}
    sizes |= {whole * block + more for whole in (1, 2, 3) for more in (-16, -1, 0, 1, 15, 16, 17, 31)}
    with patch.object(blocks, "BLOCK", block):
        for size in sorted(size for size in sizes if 0 < size < 110_000):
            drawn = torch.full((size,), float("nan"))
            draw(Draw(drawn, distribution, SEED + size))
            assert torch.equal(drawn, reference(distribution, size, SEED + size)), size


def test_later_passes_are_needed_and_right() -> None:
    """A million numbers need six passes; the last ones skip nearly all blocks."""
    distribution = Normal(0.1, truncated=True)
    drawn, passes = torch.empty(1000, 1000), list[int]()
    plain = blocks._Stream.draw_at

    def noted(stream: Any, places: Tensor) -> Iterator[Tensor]:
        passes.append(len(places))
        return plain(stream, places)

    with patch.object(blocks._Stream, "draw_at", noted):
        draw(Draw(drawn, distribution, SEED))
    assert torch.equal(drawn.view(-1), reference(distribution, 10**6, SEED))
    assert len(passes) >= 4 and passes[0] > 40_000 and passes[-1] < blocks.BLOCK / 1000


def test_any_number_of_threads_draws_the_same_and_leaves_the_callers_state_alone() -> None:
    distributions: list[Distribution] = [Normal(0.1, truncated=True), Normal(1.0), Constant(3.0)]
    shapes = [(3, 5), (700_000,), (200, 333)]
    before, of_torch = torch.get_rng_state(), torch.get_num_threads()
    results, names = [], set()

    def noted(one: Draw) -> None:
        names.add(threading.current_thread().name)
        draw(one)

    for number in (1, 2, 5):
        targets = [nn.Parameter(torch.empty(shape)) for shape in shapes for _ in distributions]
        with patch.object(threads, "draw", noted):
            draw_all([Draw(t.detach(), distributions[i % 3], SEED + i) for i, t in enumerate(targets)], number)
        results.append(targets)
    assert len(names) > 1
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)
    for i, drawn in enumerate(results[0]):
        assert torch.equal(drawn.view(-1), reference(distributions[i % 3], drawn.numel(), SEED + i))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == of_torch


def test_an_error_in_a_thread_is_raised() -> None:
    wrong = Draw(torch.empty(10, device="meta"), Normal(1.0), SEED)._replace(distribution=None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        draw_all([wrong, wrong], threads=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_have_the_same_numbers_rounded_once(dtype: torch.dtype) -> None:
    """Numbers beyond two sigma are those of float32: bf16 would round some onto the bound."""
    for distribution in (Normal(0.1, truncated=True), Normal(1.0)):
        drawn = torch.empty(40, 1001, dtype=dtype)
        draw(Draw(drawn, distribution, SEED))
        assert torch.equal(drawn.view(-1), reference(distribution, drawn.numel(), SEED).to(dtype))
