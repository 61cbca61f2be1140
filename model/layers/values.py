"""Tensors that have shapes alone: of the meta device, and fake ones (``FakeTensorMode``), which pretend a device."""

from torch import Tensor, nn


def has_values(x: Tensor) -> bool:
    """Return whether the elements of ``x`` can be read; False where only shapes are computed."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta
