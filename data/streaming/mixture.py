"""A weighted mixture of sources in a deterministic order."""

from typing import Any

from data.streaming.stream import Example, ExampleStream

# Fractional parts of the golden ratio and of the square root of two in units of 2^-64. Their multiples modulo 1 are
# low-discrepancy sequences.
GOLDEN_RATIO = 0x9E3779B97F4A7C15
SQUARE_ROOT_OF_2 = 0x6A09E667F3BCC908
UNIT = 1 << 64


class MixtureStream:
    """One logical stream that interleaves streams of all sources, with raw tokens in proportion to the weights.

    [0, 1) is divided into one interval per source. Example k of stream s comes from the source whose interval contains
    the point (s, k) of a low-discrepancy sequence, so all streams together follow the weights from the first examples,
    and each stream soon after. An interval's length is the source's weight over the mean length of its examples that
    this stream has read: sources of short documents have more short examples. The order therefore depends only on the
    stream's own past, not on other streams, ranks or workers.

    Args:
        number: of this logical stream.
        streams: one stream per source.
        weights: positive, in any unit.
    """

    def __init__(self, number: int, streams: list[ExampleStream], weights: list[float]) -> None:
        self.streams = streams
        self._number = number
        self._weights = weights

    def next_example(self) -> Example:
        """Return the next example; see ``ExampleStream.next_example``."""
        return self._next_stream().next_example()

    def _next_stream(self) -> ExampleStream:
        if len(self.streams) == 1:
            return self.streams[0]
        given = sum(stream.examples_given for stream in self.streams)
        point = (self._number * GOLDEN_RATIO + given * SQUARE_ROOT_OF_2) % UNIT / UNIT
        lengths = [weight / stream.mean_length for weight, stream in zip(self._weights, self.streams, strict=True)]
        remaining = point * sum(lengths)
        for stream, length in zip(self.streams, lengths, strict=True):
            remaining -= length
            if remaining < 0:
                return stream
        return self.streams[-1]  # rounding

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the sources' streams as JSON values."""
        return {"sources": [stream.state_dict() for stream in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last example returned before ``state_dict``."""
        for stream, saved in zip(self.streams, state["sources"], strict=True):
            stream.load_state_dict(saved)
