"""Decides where the Triton kernels run."""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

OLDEST_CAPABILITY = (8, 0)  # bf16 and tf32 products

_allowed = True


def usable(tensor: Tensor) -> bool:
    """Return whether the kernels can run where ``tensor`` is: on a GPU on which Triton works, unless switched off."""
    return _allowed and tensor.is_cuda and _works(tensor.device)


def kernels(name: str) -> Any:
    """Import the module ``name`` of this package, where ``usable``."""
    return importlib.import_module(f"{__package__}.{name}")


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Compute with torch operations in place of kernels: for comparisons of the two. Not for several threads."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


@functools.cache
def _works(device: torch.device) -> bool:
    """Compile and run the smallest kernel: Triton also needs a C compiler, and a folder for its cache."""
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return False
    try:
        ones = torch.ones(1, 16, device=device)
        kernels("geglu").geglu(ones, ones)
    except Exception as error:  # whatever Triton raises, the torch operations still compute
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"Triton kernels are off, which is slower: {type(error).__name__}: {reason}", stacklevel=2)
        return False
    return True
