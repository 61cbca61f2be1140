"""Copies of a capture in host memory, so that training may change its tensors while they are written."""

import torch
from torch import Tensor

from training.checkpoint.capture import Capture


class HostCopies:
    """Host buffers, allocated once and reused."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def copy(self, captured: Capture) -> Capture:
        """Return the same capture in tensors that training does not change; valid until the next call."""
        files = {
            file: {name: self._copy((file, name), tensor) for name, tensor in tensors.items()}
            for file, tensors in captured.files.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Capture(files, captured.state, captured.ranks)

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self.buffers[key] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
