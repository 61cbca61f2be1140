"""One logical stream over all sources: a weighted mixture in a fixed order."""

from typing import Any

from data.streaming.stream import Example, ExampleStream

# Fractions of the golden ratio and of the square root of two, in units of 2^-64: their multiples, modulo 1, fill [0, 1)
# about as evenly as numbers can.
GOLDEN_RATIO = 0x9E3779B97F4A7C15
SQUARE_ROOT_OF_2 = 0x6A09E667F3BCC908
UNIT = 1 << 64


class MixtureStream:
    """Interleaves one stream of each source so that raw tokens come in proportion to the weights.

    Example k of stream s is of the source in whose part of [0, 1) a low-discrepancy sequence over (s, k) falls: all
    streams together follow the weights from the first examples on, and each alone soon. The parts are the weights over
    the mean length of the source's examples, as this stream has seen them: sources of short documents have more short
    examples. So the order follows from the stream's own past, never from other streams, ranks or workers.

    Args:
        number: of this logical stream.
        streams: one of each source.
        weights: positive, in any unit.
    """

    def __init__(self, number: int, streams: list[ExampleStream], weights: list[float]) -> None:
        self.streams = streams
        self._number = number
        self._weights = weights

    def next_example(self) -> Example:
        """The next example; see `ExampleStream`."""
        if len(self.streams) == 1:
            return self.streams[0].next_example()
        given = sum(stream.examples_given for stream in self.streams)
        point = (self._number * GOLDEN_RATIO + given * SQUARE_ROOT_OF_2) % UNIT / UNIT
        parts = [weight / stream.mean_length for weight, stream in zip(self._weights, self.streams, strict=True)]
        left = point * sum(parts)
        for stream, part in zip(self.streams, parts, strict=True):
            left -= part
            if left < 0:
                return stream.next_example()
        return self.streams[-1].next_example()  # rounding

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the states of the sources' streams."""
        return {"sources": [stream.state_dict() for stream in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last example given before `state_dict`."""
        for stream, saved in zip(self.streams, state["sources"], strict=True):
            stream.load_state_dict(saved)
