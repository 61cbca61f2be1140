"""Copies of a capture in host memory, so that training may change its tensors while they are written.

They lie in one pinned block of exactly their size. ``torch.empty(pin_memory=True)`` rounds every buffer up to a power
of two: on an H200 100 buffers of 36 MB took 6.6 GB and 3.8 s, one block of them 3.5 GB and 1.4 s; a device copied into
either at 55 GB/s.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from math import prod
from typing import Generic, TypeVar

import torch

from training.checkpoint.capture import Capture

Name = tuple[str, str]  # file and tensor
Key = TypeVar("Key", bound=Hashable)
ALIGNMENT = 256  # bytes of the start of every buffer; a multiple of every dtype's size


class HostBlock(Generic[Key]):
    """One block of host memory, and a tensor in it for each shape and dtype; their contents are undefined at first.

    Args:
        shapes: by any key.
        pinned: whether CUDA can copy into it while the host continues; needs a CUDA device.

    Raises:
        RuntimeError: CUDA cannot pin so much memory.
    """

    def __init__(self, shapes: Mapping[Key, tuple[torch.Size, torch.dtype]], *, pinned: bool):
        starts, size = {}, 0
        for key, (shape, dtype) in shapes.items():
            starts[key] = size
            size += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.memory = torch.empty(size, dtype=torch.uint8)
        self.pinned = pinned and size > 0
        if self.pinned:
            cuda = torch.cuda.cudart()
            torch.cuda.check_error(cuda.cudaHostRegister(self.memory.data_ptr(), size, 0))
        self.tensors = {
            key: self.memory[starts[key] :][: prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for key, (shape, dtype) in shapes.items()
        }

    def close(self) -> None:
        """Unpin the memory, which is freed with the last of the tensors; nothing may be copying into it."""
        if self.pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr()))
            self.pinned = False


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
