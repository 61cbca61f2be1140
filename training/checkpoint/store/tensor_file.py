"""Writes a safetensors file chunk by chunk, so that neither a tensor nor the file needs to fit in memory.

``safetensors.torch.save_file`` needs all tensors at once. The format is a JSON header followed by the bytes of the
tensors (https://huggingface.co/docs/safetensors).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from common.strict_json import to_json
from training.checkpoint.store.manifest import FileRecord, RecordedFile

DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip
CHUNK = 2**26  # most elements read or written at once: 256 MB of float32


Announced = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class TensorFileWriter:
    """Context manager that writes the announced tensors in order; on disk when the context is left.

    Args:
        path: the file, which must not exist.
        tensors: name → dtype and shape.

    Raises:
        ValueError: a chunk of another dtype, too many elements or, at the end, too few.
    """

    def __init__(self, path: Path, tensors: Announced):
        header, ends = _header(tensors)
        self.ends = [(end, dtype, name) for end, (name, (dtype, _)) in zip(ends, tensors.items(), strict=True)]
        self.path, self.written, self.current = path, 0, 0
        self.file = RecordedFile(path)
        self.file.write(header)

    def append(self, chunk: Tensor) -> None:
        """Write the next elements of the current tensor, in row-major order, or the first ones of the next tensor."""
        while self.current < len(self.ends) and self.written == self.ends[self.current][0]:
            self.current += 1
        end, dtype, name = self.ends[self.current] if self.current < len(self.ends) else (self.written, None, None)
        data = chunk.detach().to("cpu").contiguous().view(-1)
        if data.dtype != dtype or self.written + data.numel() * data.itemsize > end:
            raise ValueError(f"{self.path}: {data.numel()} elements of {data.dtype} do not fit {name} of {dtype}")
        self.written += self.file.write(data.view(torch.uint8).numpy().data)

    @property
    def record(self) -> FileRecord:
        """The record of the whole file, for a manifest."""
        return self.file.record

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.__exit__(kind, value, trace)
        if kind is None and self.ends and self.written != self.ends[-1][0]:
            raise ValueError(f"{self.path}: {self.written} of {self.ends[-1][0]} bytes were written")


def _header(tensors: Announced) -> tuple[bytes, list[int]]:
    """Return what a file begins with, and where each tensor ends, counted from there."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for name, (dtype, shape) in tensors.items():
        ends.append(ends[-1] + math.prod(shape) * dtype.itemsize)
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": ends[-2:]}
    text = to_json(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text, ends[1:]


def announced(tensors: Mapping[str, Tensor]) -> Announced:
    """Return name, dtype and shape of tensors."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def file_bytes(tensors: Announced) -> int:
    """Return the size of the file that ``TensorFileWriter`` writes."""
    header, ends = _header(tensors)
    return len(header) + (ends[-1] if ends else 0)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write a new file of tensors on any device; at most ``CHUNK`` elements are copied to the host at once."""
    with TensorFileWriter(path, announced(tensors)) as file:
        for tensor in tensors.values():
            for chunk in tensor.detach().reshape(-1).split(CHUNK) if tensor.numel() else ():
                file.append(chunk)
    return file.record
