"""Passes of ``nn.init.trunc_normal_`` over many tensors at once: a program for each stream of random numbers.

A stream is that of a Mersenne Twister (Matsumoto and Nishimura 1998). Its state is replaced as a whole; most words of
the new one need a word of the old state 397 places on, and so of the new one 227 places back.
"""

import triton
import triton.language as tl
from torch import Tensor

WORDS = 624  # of a state

_WORDS = tl.constexpr(WORDS)
_SHIFT = tl.constexpr(397)
_LANES = tl.constexpr(1024)  # the power of two that holds a state
_PART = tl.constexpr(256)


@triton.jit
def _replace(state, first, stop):
    """Replace the words ``[first, stop)`` of a state, at most 227."""
    i = first + tl.arange(0, _PART)
    inside = i < stop
    upper = tl.load(state + i, mask=inside, other=0).to(tl.uint32, bitcast=True)
    lower = tl.load(state + (i + 1) % _WORDS, mask=inside, other=0).to(tl.uint32, bitcast=True)
    other = tl.load(state + (i + _SHIFT) % _WORDS, mask=inside, other=0).to(tl.uint32, bitcast=True)
    y = (upper & 0x80000000) | (lower & 0x7FFFFFFF)
    word = other ^ (y >> 1) ^ tl.where((y & 1) != 0, 0x9908B0DF, 0).to(tl.uint32)
    tl.debug_barrier()
    tl.store(state + i, word.to(tl.int32, bitcast=True), mask=inside)
    tl.debug_barrier()


@triton.jit
def _uniform_bits(state, i, wanted):
    """The 24 bits of a uniform float32 number that torch takes of a word of a state."""
    y = tl.load(state + i, mask=wanted, other=0).to(tl.uint32, bitcast=True)
    y = y ^ (y >> 11)
    y = y ^ ((y << 7) & 0x9D2C5680)
    y = y ^ ((y << 15) & 0xEFC60000)
    y = y ^ (y >> 18)
    return (y & 0xFFFFFF).to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["first", "stop", "size"])
def _draw(states, targets, radius, cosine, sine, first, stop, size, std, bound):
    program = tl.program_id(0)
    state = states + program * _WORDS
    target = tl.load(targets + program).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, _LANES)
    lane = i % 16
    inside = i < _WORDS
    drawn = (tl.zeros((), dtype=tl.int64) + first) * _WORDS  # numbers of the stream before this block
    for _ in range(first, stop):
        _replace(state, 0, _WORDS - _SHIFT)
        _replace(state, _WORDS - _SHIFT, 2 * (_WORDS - _SHIFT))
        _replace(state, 2 * (_WORDS - _SHIFT), _WORDS - 1)
        _replace(state, _WORDS - 1, _WORDS)
        place = drawn % size + i
        place = tl.where(place < size, place, place - size)
        old = tl.load(target + place, mask=inside & (drawn + i >= size), other=float("inf"))
        wanted = inside & (tl.abs(old) > bound)
        # Of 16 uniform numbers torch makes 16 normal ones (Box-Muller): 8 radii, and 8 angles for 8 more.
        u = _uniform_bits(state, i - lane + lane % 8, wanted)
        v = _uniform_bits(state, i - lane + lane % 8 + 8, wanted)
        length = tl.load(radius + u, mask=wanted, other=0.0)
        c = tl.load(cosine + v, mask=wanted & (lane < 8), other=0.0)
        s = tl.load(sine + v, mask=wanted & (lane >= 8), other=0.0)
        tl.store(target + place, length * tl.where(lane < 8, c, s) * std, mask=wanted)
        tl.debug_barrier()
        drawn += _WORDS


def draw_blocks(
    states_SW: Tensor, targets_S: Tensor, tables: tuple[Tensor, ...], blocks: range, size: int, std: float, bound: float
) -> None:
    """Draw the next numbers of each stream, for the places of its target one after the other, again and again.

    The first number of a place is kept, and each later one if the one there is beyond ``bound``.

    Args:
        states_SW: int32, ``[S, 624]``: states before the first of the blocks; then those after the last.
        targets_S: int64, ``[S]``: addresses of float32 numbers.
        tables: float32, ``[2^24]`` each: radius, cosine and sine, by the bits of a uniform number.
        blocks: of 624 numbers each.
        size: numbers of a target: at least 1,024, a multiple of 16.
        std: factor of the numbers.
        bound: float32.
    """
    _draw[(len(targets_S),)](states_SW, targets_S, *tables, blocks.start, blocks.stop, size, std, bound, num_warps=8)
