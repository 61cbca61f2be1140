"""Partitions that do not hold every element once are refused; DeepSpeed's real ones are tested in tests/training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from optim.parameter import parameter_specs
from optim.partition import Partition, Segment
from optim.zero_partitions import _not_covered, check_cover, read_partitions

FIRST, SECOND = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(5))
FROZEN = nn.Parameter(torch.zeros(4), requires_grad=False)
SPECS = parameter_specs([("first", FIRST), ("second", SECOND), ("frozen", FROZEN)])
A, B, C = SPECS[FIRST], SPECS[SECOND], SPECS[FROZEN]


def check(*segments: Segment, numel: int = 12) -> None:
    check_cover([Partition(torch.zeros(numel), segments)], SPECS)


def test_every_element_must_be_held_once():
    check(Segment(A, 0, 6, 0), Segment(B, 0, 5, 6))
    check(Segment(B, 0, 5, 0), Segment(A, 0, 6, 6))
    check_cover([Partition(torch.zeros(2), ())], {FROZEN: C})  # a rank may hold nothing but padding
    for message, segments in {
        r"every trainable parameter once: \['second'\]": (Segment(A, 0, 6, 0),),
        r"every trainable parameter once: \['first', 'second', 'second'\]": (
            Segment(A, 0, 6, 0), Segment(B, 0, 5, 6), Segment(B, 0, 5, 6),
        ),
        r"every trainable parameter once: \['frozen'\]": (
            Segment(A, 0, 6, 0), Segment(B, 0, 5, 6), Segment(C, 0, 1, 11),
        ),
        r"do not make up first exactly: \[\[0, 5\]\]": (Segment(A, 0, 5, 0), Segment(B, 0, 5, 6)),
        r"do not make up second exactly: \[\[1, 5\]\]": (Segment(A, 0, 6, 0), Segment(B, 1, 5, 6)),
        "overlap at 5-6": (Segment(A, 0, 6, 0), Segment(B, 0, 5, 5)),
        "overlap at 12-13": (Segment(A, 0, 6, 0), Segment(B, 0, 5, 8)),
    }.items():  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            check(*segments)


@given(data=st.data())
def test_a_parameter_that_ranks_hold_twice_or_in_part_is_found(data: st.DataObject):
    """However many ranks there are, whoever holds nothing of it."""
    numels = [A.numel, B.numel]
    ranks = data.draw(st.integers(1, 5))
    edges = torch.zeros(2, ranks, 2, dtype=torch.int64)
    for number, numel in enumerate(numels):
        cuts = sorted(data.draw(st.lists(st.integers(0, numel), min_size=ranks - 1, max_size=ranks - 1)))
        shares = list(zip([0, *cuts], [*cuts, numel], strict=True))
        edges[number] = torch.tensor(data.draw(st.permutations(shares)))
    segments = [Segment(A, 0, 6, 0), Segment(B, 0, 5, 6)]
    assert not list(_not_covered(segments, edges))
    number, rank, edge = (data.draw(st.integers(0, most)) for most in (1, ranks - 1, 1))
    edges[number, rank, edge] = data.draw(st.integers(0, numels[number]))
    counts = [sum(start <= i < stop for start, stop in edges[number].tolist()) for i in range(numels[number])]
    found = [segment.spec.name for segment, _ in _not_covered(segments, edges)]
    assert found == ([] if set(counts) == {1} else [segments[number].spec.name])


def test_unknown_wrappers_are_refused():
    with pytest.raises(TypeError, match="the partitions of int are unknown"):
        read_partitions(3, SPECS)
