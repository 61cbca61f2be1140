"""One logical stream over all sources: a weighted mixture in a fixed order."""

import math
from typing import Any

from data.stream import Example, ExampleStream

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class MixtureStream:
    """Interleaves one stream of each source so that raw tokens come in proportion to the weights.

    Each example is of the source that is furthest behind its share of the tokens that this stream has given. Streams
    begin at different phases: a source of small weight would otherwise be due in all of them at once. The order follows
    from the stream's own past alone, never from other streams, ranks or workers.

    Args:
        number: of this logical stream.
        streams: one of each source.
        weights: positive, in any unit.
        raw_length: tokens of a full piece.
    """

    def __init__(self, number: int, streams: list[ExampleStream], weights: list[float], raw_length: int) -> None:
        self.streams = streams
        self._weights = weights
        # Multiples of the golden ratio fill [0, 1) evenly, however many streams there are.
        phases = (math.modf(0.5 + (number + 1) * (source + 1) * GOLDEN_RATIO)[0] for source in range(len(streams)))
        self._heads = [phase * raw_length for phase in phases]

    @property
    def epoch(self) -> int:
        """Lowest epoch among the sources, from 0."""
        return min(stream.epoch for stream in self.streams)

    def next_example(self) -> Example:
        """The next example; see `ExampleStream`."""
        return min(zip(self.streams, self._heads, self._weights, strict=True), key=_virtual_time)[0].next_example()

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the states of the sources' streams."""
        return {"sources": [stream.state_dict() for stream in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last example given before `state_dict`."""
        for stream, saved in zip(self.streams, state["sources"], strict=True):
            stream.load_state_dict(saved)


def _virtual_time(source: tuple[ExampleStream, float, float]) -> float:
    """Tokens given, with the head start, per unit of weight; the stream with the least is due (stride scheduling)."""
    stream, head, weight = source
    return (stream.tokens_given + head) / weight
