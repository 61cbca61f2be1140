"""Copies of a capture in host memory, so that training may change its tensors while they are written."""

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.logs import get_logger
from training.checkpoint.capture import Capture

ALIGNMENT = 64  # bytes: where a tensor begins in the buffer

logger = get_logger(__name__)


class HostCopies:
    """One host buffer for all tensors, allocated once and reused: as many bytes as they have.

    Copies from a GPU are fast, and overlap, only to memory that is locked. Torch allocates locked memory in powers of
    two, up to twice of what a tensor needs: here the buffer is locked after it was allocated.
    """

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.unlock: Callable[[], Any] = lambda: None

    @torch.no_grad()
    def copy(self, captured: Capture) -> Capture:
        """Return the same capture in tensors that training does not change; valid until the next call."""
        tensors = [tensor.detach() for of_file in captured.files.values() for tensor in of_file.values()]
        starts = list(itertools.accumulate((_room(tensor) for tensor in tensors), initial=0))
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        self._reserve(starts.pop(), on_gpu=on_gpu)
        copies = iter([self._copy(tensor, start) for tensor, start in zip(tensors, starts, strict=True)])
        files = {file: {name: next(copies) for name in of_file} for file, of_file in captured.files.items()}
        if on_gpu:
            torch.cuda.synchronize()
        return replace(captured, files=files)

    def _reserve(self, nbytes: int, *, on_gpu: bool) -> None:
        if self.buffer.numel() == nbytes:
            return
        self.unlock()
        self.buffer = torch.empty(0, dtype=torch.uint8)  # the old one is freed before the new one is there
        self.buffer = torch.empty(nbytes, dtype=torch.uint8)
        self.unlock = _lock(self.buffer) if on_gpu else lambda: None

    def _copy(self, tensor: Tensor, start: int) -> Tensor:
        place = self.buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return place.copy_(tensor, non_blocking=tensor.is_cuda)


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _lock(buffer: Tensor) -> Callable[[], Any]:
    """Lock a buffer in memory, so that a GPU can write to it, if the host allows that; returns what unlocks it."""
    runtime, address = torch.cuda.cudart(), buffer.data_ptr()
    if int(runtime.cudaHostRegister(address, buffer.nbytes, 0)):
        logger.info("%.1f GB of host memory cannot be locked: copying checkpoints takes longer", buffer.nbytes / 1e9)
        return lambda: None
    unlock = weakref.finalize(buffer, runtime.cudaHostUnregister, address)
    unlock.atexit = False  # the process ends, and CUDA may have ended before
    return unlock
