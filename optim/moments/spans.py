"""Many short spans of a partition as one vector.

Shape suffixes: N = spans, M = elements of all spans together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Spans:
    """Consecutive elements of a partition each, none of them empty.

    Args:
        offsets, lengths: in the partition, ``N`` of each.
        device: of the tensors that are worked on.
    """

    def __init__(self, offsets: Sequence[int], lengths: Sequence[int], device: torch.device):
        self.offsets, self.lengths = list(offsets), list(lengths)
        self.numel = sum(self.lengths)
        self.lengths_N = torch.tensor(self.lengths, device=device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the spans of ``flat``, a vector with the partition's elements."""
        return [flat.narrow(0, *span) for span in zip(self.offsets, self.lengths, strict=True)]

    def gather(self, flat: Tensor) -> Tensor:
        """Return the spans of ``flat`` as one new vector ``[M]``."""
        return torch.cat(self.views(flat))

    def split(self, values_M: Tensor) -> list[Tensor]:
        """Return what belongs to each span of ``values_M``."""
        return list(values_M.split(self.lengths))

    def spread(self, values_N: Tensor) -> Tensor:
        """Return the value of its span for every element, ``[M]``."""
        return values_N.repeat_interleave(self.lengths_N, output_size=self.numel)

    def subtract_product(self, flat: Tensor, one_M: Tensor, other_M: Tensor, scale: float = 1.0) -> None:
        """Subtract ``scale`` times the product of two vectors from the spans of ``flat``."""
        torch._foreach_addcmul_(self.views(flat), self.split(one_M), self.split(other_M), value=-scale)


def norms(*vectors: list[Tensor]) -> Tensor:
    """Return the norm of each vector of each list, all lists of the same length: ``[lists, length]``."""
    found = torch._foreach_norm([vector for some in vectors for vector in some])
    return torch.stack(found).view(len(vectors), -1)
