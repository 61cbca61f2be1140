"""The geometry of second moments: every element in exactly one stack or part of a row, at its unit, row and column."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.moments.full import FullMoments, UnitSpan
from optim.moments.matrices import Matrices, Sizes
from optim.moments.rectangles import Rectangle, rectangles
from optim.moments.spans import Spans, norms
from optim.moments.stacks import make_stacks
from optim.parameter import ExpertAxis, ParameterSpec
from optim.partition import Segment


def spec_of(name: str, units: int, shape: tuple[int, ...]) -> ParameterSpec:
    return ParameterSpec(name, (units, *shape), ExpertAxis(units, range(units), split=True))


@st.composite
def segments(draw: st.DrawFn) -> tuple[list[Segment], int, int, int]:
    """Segments of matrices of one shape at growing offsets, some of them empty; rows, columns; most elements."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    found, offset = [], draw(st.integers(0, 5))
    for index in range(draw(st.integers(1, 6))):
        units = draw(st.integers(1, 4))
        numel = units * rows * columns
        start = draw(st.one_of(st.just(0), st.integers(0, numel)))
        stop = draw(st.one_of(st.just(numel), st.integers(start, numel)))
        found.append(Segment(spec_of(f"w{index}", units, (rows, columns)), start, stop, offset))
        offset += stop - start + draw(st.sampled_from([0, 0, 3]))
    return found, rows, columns, draw(st.integers(1, 4 * rows * columns))


@given(segments())
def test_stacks_and_parts_of_rows_make_up_the_segments(drawn: tuple[list[Segment], int, int, int]):
    held, rows, columns, max_elements = drawn
    flat = torch.full((held[-1].offset + held[-1].numel + 3,), -1)
    expected: list[int] = []
    before = 0
    for segment in held:
        segment.view(flat).copy_(before + torch.arange(segment.start, segment.stop))
        expected += range(before + segment.start, before + segment.stop)
        before += segment.spec.numel
    number_URC = torch.arange(before).view(-1, rows, columns)
    matrices = Matrices((rows, columns), held, Sizes(), max_elements)
    assert matrices.count * rows * columns == before
    seen = []
    for stack in matrices.stacks:
        view_SRC = stack.view(flat)
        own_SRC = stack.of_units(number_URC)[..., stack.row.start : stack.row.stop, :]
        assert torch.equal(view_SRC, own_SRC)
        assert torch.equal(stack.of_rows(number_URC[..., 0]), own_SRC[..., 0])
        assert view_SRC.numel() == stack.numel <= max(max_elements, columns)
        seen += view_SRC.flatten().tolist()
    for part in matrices.parts:
        own = flat[part.offset : part.offset + part.numel]
        assert torch.equal(own, number_URC[part.unit, part.row.start, part.column.start : part.column.stop])
        assert len(part.row) == 1
        assert 0 < len(part.column) < columns
        seen += own.tolist()
    assert sorted(seen) == expected


@given(segments())
def test_unit_runs_make_up_the_segment(drawn: tuple[list[Segment], int, int, int]):
    segment = drawn[0][0]
    numbers = torch.arange(segment.start, segment.stop)
    found = []
    for unit, elements, span in segment.unit_runs():
        own = numbers[span] - unit * segment.spec.unit_numel
        assert own.tolist() == list(elements)
        found += numbers[span].tolist()
    assert found == numbers.tolist()


def test_rectangles_of_a_segment():
    """The end of a row, whole rows, each whole expert, whole rows, the start of a row."""
    spec = ParameterSpec("w", (9, 10, 8), ExpertAxis(9, range(2, 8), split=True))
    segment = Segment(spec, start=13, stop=431, offset=0)
    found = list(rectangles(segment, 10, 8, 1000))
    assert found == [
        Rectangle(0, 0, range(1, 2), range(5, 8)),
        Rectangle(3, 0, range(2, 10), range(8)),
        *(Rectangle(80 * unit - 13, unit, range(10), range(8)) for unit in range(1, 5)),
        Rectangle(387, 5, range(3), range(8)),
        Rectangle(411, 5, range(3, 4), range(7)),
    ]
    whole = [rectangle for rectangle in found if len(rectangle.column) == 8]
    assert [stack.counts for stack in make_stacks(whole, 1000)] == [(1,), (4,), (1,)], "whole experts together"
    assert spec.unit_key(3) == "w/expert_5"
    assert spec.numel == 6 * 80
    assert segment.elements == range(160 + 13, 160 + 431)


def test_equal_layers_are_one_stack():
    """Three layers of four projections, with norms between them; the same rows of each, as under ZeRO 3."""
    offsets = [layer * 500 + projection * 40 for layer in range(3) for projection in range(4)]
    found = [Rectangle(offset, unit, range(4, 8), range(10)) for unit, offset in enumerate(offsets)]
    (stack,) = make_stacks(found, 10_000)
    assert (stack.counts, stack.distances) == ((3, 4), (500, 40))
    assert [s.counts for s in make_stacks(found, 400)] == [(2, 4), (4,)], "no more than 400 elements"
    assert [prod(s.counts) for s in make_stacks(found, 39)] == [1] * 12


def test_spans():
    flat = torch.arange(20.0)
    spans = Spans([3, 10], [2, 4], flat.device)
    assert spans.gather(flat).tolist() == [3, 4, 10, 11, 12, 13]
    assert spans.spread(torch.tensor([1.0, 2.0])).tolist() == [1, 1, 2, 2, 2, 2]
    assert norms([flat[3:5], torch.full((9,), 4.0)], [torch.ones(4), torch.ones(9)]).tolist() == [[5, 12], [2, 3]]
    spans.subtract_product(flat, spans.gather(flat), torch.ones(6))
    assert flat.nonzero().flatten().tolist() == [1, 2, 5, 6, 7, 8, 9, 14, 15, 16, 17, 18, 19]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 40))
def test_blocks_of_full_moments_make_up_the_spans(lengths: list[int], max_elements: int):
    held, offset = [], 2
    for unit, numel in enumerate(lengths):
        held.append(UnitSpan(unit, offset, numel))
        offset += numel + unit % 2
    moments = FullMoments(held, torch.zeros(1), 1e-30, max_elements)
    assert len(moments.moment) == sum(lengths)
    assert all(block.spans.numel == len(block.moment_M) <= max_elements for block in moments.blocks)
    assert all(len(set(block.unit_N.tolist())) == len(block.unit_N) for block in moments.blocks)
    flat = torch.arange(offset)
    gathered = torch.cat([block.spans.gather(flat) for block in moments.blocks])
    assert gathered.tolist() == [n for span in held for n in range(span.offset, span.offset + span.numel)]
