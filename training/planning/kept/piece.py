"""A piece of a model: what it keeps, and what it has beside that while it computes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Piece:
    """One piece of a block, in the order of the forward pass. All figures are bytes.

    Args:
        saved: what autograd keeps until the piece's backward pass is over, by part of the model.
        forward: what its forward pass has at most beside that.
        backward: what its backward pass has at most beside that; not the gradients of weights.
    """

    saved: Mapping[str, int] = field(default_factory=dict)
    forward: int = 0
    backward: int = 0

    @property
    def bytes(self) -> int:
        """What it keeps, all parts together."""
        return sum(self.saved.values())


def total(pieces: Iterable[Piece]) -> Counter[str]:
    """Return what pieces keep together, by part."""
    found: Counter[str] = Counter()
    for piece in pieces:
        found.update(piece.saved)
    return found


def highest(pieces: Iterable[Piece], *, recomputed: bool) -> tuple[int, int]:
    """Return where a block's memory is highest in its backward pass: the number of the piece, the bytes beside kept.

    Args:
        pieces: of the block, in the order of the forward pass.
        recomputed: whether the backward pass begins with the forward pass, so that its needs count too.
    """
    kept, found = 0, (0, 0)
    best = -1
    for number, piece in enumerate(pieces):
        kept += piece.bytes
        beside = max(piece.backward, piece.forward) if recomputed else piece.backward
        if kept + beside > best:
            best, found = kept + beside, (number, beside)
    return found
