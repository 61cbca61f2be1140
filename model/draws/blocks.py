"""Random numbers for whole parameters, by several threads and in little memory, equal to the bit to torch's.

``nn.init.trunc_normal_`` draws a whole tensor, and draws it again, whole, until no number is left beyond two sigma: six
passes for a million numbers. Here each pass goes through blocks, and a later pass only moves the generator on where no
number is needed. Every draw has a generator of its own, so that draws can be made in any order.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from model.draws.distributions import Constant, Draw, Normal

BLOCK = 1 << 18  # numbers at a time: of smaller blocks, threads would wait for each other at the interpreter
LANES = 16  # torch draws and transforms normal numbers in groups; the rest of a tensor it draws with the last group


@torch.no_grad()
def draw(one: Draw) -> None:
    """Fill the target with the float32 numbers that ``fill`` draws from a CPU generator with the seed, then rounded."""
    target, distribution, seed = one
    if isinstance(distribution, Constant):
        target.fill_(distribution.value)
        return
    generator = Generator().manual_seed(seed)
    if target.numel() <= BLOCK:
        target.view(-1).copy_(_draw_small(target.numel(), distribution, generator))
        return
    stream = _Stream(target.numel(), distribution.std, generator)
    if distribution.truncated:
        _draw_truncated(target.view(-1), 2 * distribution.std, stream)
    else:
        for start, numbers in stream.draw():
            target.view(-1)[start : start + len(numbers)] = numbers


def _draw_small(size: int, distribution: Normal, generator: Generator) -> Tensor:
    std, numbers = distribution.std, torch.empty(size, dtype=torch.float32)
    numbers.normal_(0.0, std, generator=generator)
    bound = _rounded(2 * std) if distribution.truncated else float("inf")
    while (beyond := numbers.abs() > bound).any():
        numbers = torch.where(beyond, torch.empty_like(numbers).normal_(0.0, std, generator=generator), numbers)
    return numbers


def _rounded(bound: float) -> float:
    """The bound as ``trunc_normal_`` rounds it."""
    return torch.tensor(bound, dtype=torch.float32).item()


class _Stream:
    """What ``normal_`` draws for a tensor of ``size`` numbers, call by call."""

    def __init__(self, size: int, std: float, generator: Generator):
        whole = size // BLOCK - (0 < size % BLOCK < LANES)  # the last block has at least LANES numbers
        self.starts = [i * BLOCK for i in range(whole)] + [whole * BLOCK] * (whole * BLOCK < size)
        self.stops = [*self.starts[1:], size]
        self.std, self.generator = std, generator
        self.numbers = torch.empty(BLOCK + LANES, dtype=torch.float32)
        self.bits = torch.empty(BLOCK + 2 * LANES, dtype=torch.int32)

    def draw(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first position and the numbers of each block, in memory that is used again."""
        for start, stop in zip(self.starts, self.stops, strict=True):
            yield start, self._draw(start, stop)

    def _draw(self, start: int, stop: int) -> Tensor:
        return self.numbers[: stop - start].normal_(0.0, self.std, generator=self.generator)

    def _skip(self, start: int, stop: int) -> None:
        size = stop - start
        self.bits[: size + (LANES if size % LANES else 0)].random_(generator=self.generator)

    def draw_at(self, places: Tensor) -> Iterator[Tensor]:
        """Yield the numbers at ``places``, sorted positions; when continued, draw what the call has left to draw."""
        found = torch.empty(len(places), dtype=torch.float32)
        ends = torch.searchsorted(places, torch.tensor(self.stops)).tolist()
        first, block = 0, 0
        while first < len(places):
            start, stop, last = self.starts[block], self.stops[block], ends[block]
            if first == last:
                self._skip(start, stop)
            else:
                torch.index_select(self._draw(start, stop), 0, places[first:last] - start, out=found[first:last])
            first, block = last, block + 1
        yield found
        for start, stop in zip(self.starts[block:], self.stops[block:], strict=True):
            self._skip(start, stop)


def _draw_truncated(flat: Tensor, bound: float, stream: _Stream) -> None:
    bound = _rounded(bound)
    beyond = []
    for start, numbers in stream.draw():
        flat[start : start + len(numbers)] = numbers
        beyond.append((numbers.abs() > bound).nonzero().view(-1) + start)
    places = torch.cat(beyond)
    while len(places):
        rest = stream.draw_at(places)
        numbers = next(rest)
        within = numbers.abs() <= bound
        flat.index_copy_(0, places[within].to(flat.device), numbers[within].to(flat))
        places = places[~within]
        if len(places):
            next(rest, None)
