"""Copies in host memory equal their tensors, share one block without waste, and are reallocated if shapes change."""

from typing import Any

import pytest
import torch
from torch import Tensor

from training.checkpoint.capture import Capture
from training.checkpoint.host_copies import ALIGNMENT, HostBlock, HostCopies


def captured(files: dict[str, dict[str, Tensor]]) -> Capture:
    nothing: Any = None
    return Capture(files, nothing, nothing, nothing)


def test_copies_stay_while_the_tensors_change():
    weights = torch.arange(7.0)
    files = {"a": {"w": weights, "none": weights[:0]}, "b": {"w": torch.ones(3, 5, dtype=torch.bfloat16),
             "step": torch.tensor(4)}}  # fmt: skip
    copies = HostCopies()
    first = copies.copy(captured(files))
    weights.zero_()
    assert first.files["a"]["w"].tolist() == list(range(7))
    assert first.files["a"]["none"].shape == (0,)
    assert torch.equal(first.files["b"]["w"], files["b"]["w"])
    assert first.files["b"]["step"].item() == 4
    where = first.files["a"]["w"].data_ptr()
    again = copies.copy(captured(files))
    assert again.files["a"]["w"].data_ptr() == where
    assert not again.files["a"]["w"].any()
    longer = copies.copy(captured({"a": {"w": torch.ones(9)}}))
    assert longer.files["a"]["w"].sum() == 9


def test_a_block_is_as_large_as_its_tensors():
    shapes = {index: (torch.Size((1000 + index,)), torch.float32) for index in range(20)}
    block = HostBlock(shapes, pinned=False)
    needed = sum(4 * (1000 + index) for index in range(20))
    assert needed <= block.memory.nbytes < needed + 20 * ALIGNMENT
    for index, tensor in block.tensors.items():
        tensor.fill_(index)
    assert all((tensor == index).all() for index, tensor in block.tensors.items())


@pytest.mark.gpu
def test_pinned_copies_of_a_device():
    weights = torch.arange(5_000_001.0, device="cuda")
    copies = HostCopies()
    copy = copies.copy(captured({"a": {"w": weights}})).files["a"]["w"]
    assert copy.is_pinned()
    assert torch.equal(copy, weights.cpu())
    assert copies.block is not None
    copies.block.close()
