"""The geometry of slices: every element in exactly one block, at its row and column."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.slices import ParameterSpec, Slice


@st.composite
def slices(draw: st.DrawFn) -> tuple[Slice, int, int, int]:
    units, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    numel = units * rows * columns
    start = draw(st.integers(0, numel))
    stop = draw(st.integers(start, numel))
    spec = ParameterSpec("w", (units, rows, columns), first_expert=0)
    return Slice(spec, start, stop, draw(st.integers(0, 5))), rows, columns, draw(st.integers(1, 2 * numel))


@given(slices())
def test_blocks_are_the_slice(drawn: tuple[Slice, int, int, int]):
    part, rows, columns, max_elements = drawn
    flat = torch.full((part.offset + part.stop - part.start + 3,), -1)
    part.view(flat).copy_(torch.arange(part.start, part.stop))
    seen = torch.zeros(part.spec.shape, dtype=torch.int64)
    number_URC = torch.arange(part.spec.numel).view(part.spec.shape)
    for block in part.blocks(rows, columns, max_elements):
        place = block.unit, block.row, block.column
        assert torch.equal(block.view(flat), number_URC[place])
        assert block.view(flat).numel() <= max(max_elements, columns)
        seen[place] += 1
    expected = torch.zeros(part.spec.numel, dtype=torch.int64)
    expected[part.start : part.stop] = 1
    assert torch.equal(seen.flatten(), expected)


@given(slices())
def test_fragments_are_the_slice(drawn: tuple[Slice, int, int, int]):
    part = drawn[0]
    numbers = torch.arange(part.start, part.stop)
    found = []
    for unit, elements, place in part.fragments():
        own = numbers[place] - unit * part.spec.unit_numel
        assert own.tolist() == list(elements)
        found += numbers[place].tolist()
    assert found == numbers.tolist()


def test_a_slice_takes_few_blocks():
    """The end of a row, whole rows, whole experts together, whole rows, the begin of a row."""
    part = Slice(ParameterSpec("w", (6, 10, 8), first_expert=2), start=13, stop=431, offset=0)
    places = [(b.unit, b.row, b.column) for b in part.blocks(10, 8, 1000)]
    assert places == [
        (slice(0, 1), slice(1, 2), slice(5, 8)),
        (slice(0, 1), slice(2, 10), slice(0, 8)),
        (slice(1, 5), slice(0, 10), slice(0, 8)),
        (slice(5, 6), slice(0, 3), slice(0, 8)),
        (slice(5, 6), slice(3, 4), slice(0, 7)),
    ]
    assert part.spec.unit_key(3) == "w/expert_5"
