"""Copies of a capture in host memory, so that training may change its tensors while they are written."""

from dataclasses import replace

import torch

from training.checkpoint.capture import Capture
from training.checkpoint.pinned import HostBlock

Name = tuple[str, str]  # file and tensor


class HostCopies:
    """Host buffers, allocated once and reused while the tensors stay the same."""

    def __init__(self) -> None:
        self.block: HostBlock[Name] | None = None
        self.shapes: dict[Name, tuple[torch.Size, torch.dtype]] = {}

    @torch.no_grad()
    def copy(self, captured: Capture) -> Capture:
        """Return the same capture in tensors that training does not change; valid until the next call."""
        tensors = {(file, name): tensor for file, of_file in captured.files.items() for name, tensor in of_file.items()}
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if self.block is None or shapes != self.shapes:
            if self.block is not None:
                self.block.close()
            self.block = None  # freed before the next one is made
            pinned = any(tensor.is_cuda for tensor in tensors.values())
            self.block, self.shapes = HostBlock(shapes, pinned=pinned), shapes
        for name, tensor in tensors.items():
            self.block.tensors[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        files = {
            file: {name: self.block.tensors[file, name] for name in captured.files[file]} for file in captured.files
        }
        return replace(captured, files=files)
