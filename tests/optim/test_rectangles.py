"""The geometry of segments: every element in exactly one rectangle, at its row and column."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.parameter import ExpertAxis, ParameterSpec
from optim.partition import Segment
from optim.rectangles import rectangles


@st.composite
def segments(draw: st.DrawFn) -> tuple[Segment, int, int, int]:
    units, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    numel = units * rows * columns
    start = draw(st.integers(0, numel))
    stop = draw(st.integers(start, numel))
    spec = ParameterSpec("w", (units, rows, columns), ExpertAxis(units, range(units), split=True))
    return Segment(spec, start, stop, draw(st.integers(0, 5))), rows, columns, draw(st.integers(1, 2 * numel))


@given(segments())
def test_rectangles_make_up_the_segment(drawn: tuple[Segment, int, int, int]):
    segment, rows, columns, max_elements = drawn
    flat = torch.full((segment.offset + segment.stop - segment.start + 3,), -1)
    segment.view(flat).copy_(torch.arange(segment.start, segment.stop))
    seen = torch.zeros(segment.spec.shape, dtype=torch.int64)
    number_URC = torch.arange(segment.spec.numel).view(segment.spec.shape)
    for rectangle in rectangles(segment, rows, columns, max_elements):
        index = rectangle.unit, rectangle.row, rectangle.column
        assert torch.equal(rectangle.view(flat), number_URC[index])
        assert rectangle.view(flat).numel() <= max(max_elements, columns)
        seen[index] += 1
    expected = torch.zeros(segment.spec.numel, dtype=torch.int64)
    expected[segment.start : segment.stop] = 1
    assert torch.equal(seen.flatten(), expected)


@given(segments())
def test_unit_runs_make_up_the_segment(drawn: tuple[Segment, int, int, int]):
    segment = drawn[0]
    numbers = torch.arange(segment.start, segment.stop)
    found = []
    for unit, elements, span in segment.unit_runs():
        own = numbers[span] - unit * segment.spec.unit_numel
        assert own.tolist() == list(elements)
        found += numbers[span].tolist()
    assert found == numbers.tolist()


def test_a_segment_takes_few_rectangles():
    """The end of a row, whole rows, whole experts together, whole rows, the start of a row."""
    spec = ParameterSpec("w", (9, 10, 8), ExpertAxis(9, range(2, 8), split=True))
    segment = Segment(spec, start=13, stop=431, offset=0)
    spans = [(r.unit, r.row, r.column) for r in rectangles(segment, 10, 8, 1000)]
    assert spans == [
        (slice(0, 1), slice(1, 2), slice(5, 8)),
        (slice(0, 1), slice(2, 10), slice(0, 8)),
        (slice(1, 5), slice(0, 10), slice(0, 8)),
        (slice(5, 6), slice(0, 3), slice(0, 8)),
        (slice(5, 6), slice(3, 4), slice(0, 7)),
    ]
    assert spec.unit_key(3) == "w/expert_5"
    assert spec.numel == 6 * 80
    assert segment.elements == range(160 + 13, 160 + 431)
