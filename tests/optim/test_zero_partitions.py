"""Layouts that do not hold every element once; what DeepSpeed's real ones hold is in tests/training."""

import pytest
import torch
from torch import nn

from optim.slices import Shard, Slice, parameter_specs
from optim.zero_partitions import check_cover, read_layout

FIRST, SECOND = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(5))
FROZEN = nn.Parameter(torch.zeros(4), requires_grad=False)
SPECS = parameter_specs([("first", FIRST), ("second", SECOND), ("frozen", FROZEN)])
A, B, C = SPECS[FIRST], SPECS[SECOND], SPECS[FROZEN]


def check(*slices: Slice, numel: int = 12) -> None:
    check_cover([Shard(torch.zeros(numel), slices)], SPECS)


def test_layouts():
    check(Slice(A, 0, 6, 0), Slice(B, 0, 5, 6))
    check(Slice(B, 0, 5, 0), Slice(A, 0, 6, 6))
    check_cover([Shard(torch.zeros(2), ())], {FROZEN: C})  # a rank may hold nothing but padding
    for message, slices in {
        r"every trainable parameter once: \['second'\]": (Slice(A, 0, 6, 0),),
        r"every trainable parameter once: \['first', 'second', 'second'\]": (
            Slice(A, 0, 6, 0), Slice(B, 0, 5, 6), Slice(B, 0, 5, 6),
        ),
        r"every trainable parameter once: \['frozen'\]": (Slice(A, 0, 6, 0), Slice(B, 0, 5, 6), Slice(C, 0, 1, 11)),
        r"do not make up first exactly: \[\[0, 5\]\]": (Slice(A, 0, 5, 0), Slice(B, 0, 5, 6)),
        r"do not make up second exactly: \[\[1, 5\]\]": (Slice(A, 0, 6, 0), Slice(B, 1, 5, 6)),
        "overlap at 5-6": (Slice(A, 0, 6, 0), Slice(B, 0, 5, 5)),
        "overlap at 12-13": (Slice(A, 0, 6, 0), Slice(B, 0, 5, 8)),
    }.items():  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            check(*slices)


def test_unknown_wrappers_are_refused():
    with pytest.raises(TypeError, match="the layout of int is not known"):
        read_layout(3, SPECS)
