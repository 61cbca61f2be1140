"""One stream of documents, cut into raw pieces of equal length, with a small exact state."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.corpus import BadRow, Corpus, Position, Row
from data.tokenizer import Tokenizer

DOCUMENTS, TOKENS = "documents", "tokens"


class Piece(NamedTuple):
    """At most `raw_length` tokens, int32, and its place: the `number`-th piece of this stream in this epoch."""

    tokens: NDArray[np.int32]
    epoch: int
    number: int


class PieceStream:
    """Packs of `documents_per_pack` documents, concatenated without separator and cut every `raw_length` tokens.

    The last piece of a pack keeps what is left, and is shorter. A pack ends with its epoch; epochs follow for ever.

    The state is the position where the current pack starts and how many of its pieces were given: no tokens. After a
    load the pack is read again, and its counts with it, so that nothing is counted twice.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, stream: int, raw_length: int, documents_per_pack: int
    ) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._stream = stream
        self._raw_length = raw_length
        self._documents_per_pack = documents_per_pack
        self._start = Position(0, 0, 0)
        self._pieces_before = 0
        self._given = 0
        self._counts: Counter[str] = Counter()
        self._pack_counts: Counter[str] = Counter()
        self._pack: NDArray[np.int32] | None = None
        self._pack_end = self._start
        self._rows: Iterator[tuple[Row, Position]] | None = None

    @property
    def counts(self) -> Counter[str]:
        """Documents, tokens and bad rows by kind, read so far, the current pack included."""
        return self._counts + self._pack_counts

    @property
    def epoch(self) -> int:
        """Epoch of the current pack, from 0."""
        return self._start.epoch

    def next_piece(self) -> Piece:
        """The next piece.

        Raises:
            ValueError: a whole epoch of this stream holds no token, or the files differ from those of the loaded state.
        """
        while True:
            if self._pack is None:
                self._pack = self._read_pack()
            first = self._given * self._raw_length
            if first < len(self._pack):
                piece = Piece(
                    self._pack[first : first + self._raw_length], self._start.epoch, self._pieces_before + self._given
                )
                self._given += 1
                if first + self._raw_length >= len(self._pack):
                    self._finish_pack()
                return piece
            self._finish_pack()

    def _read_pack(self) -> NDArray[np.int32]:
        if self._rows is None:
            self._rows = self._corpus.rows(self._stream, self._start)
        counts: Counter[str] = Counter()
        texts: list[str] = []
        # Stands unless the pack fills up first: the pack then starts the next epoch.
        self._pack_end = Position(self._start.epoch + 1, 0, 0)
        for row, position in self._rows:
            if isinstance(row, BadRow):
                counts[row.value] += 1
                continue
            texts.append(row)
            if len(texts) == self._documents_per_pack:
                self._pack_end = position
                break
        pack = np.concatenate([np.empty(0, np.int32), *self._tokenizer.encode_batch(texts)])
        counts[DOCUMENTS] += len(texts)
        counts[TOKENS] += len(pack)
        self._pack_counts = counts
        # A pack all of whose pieces were given is left at once, so a saved count is below the pack's.
        if self._given > 0 and self._given * self._raw_length >= len(pack):
            raise ValueError(
                f"stream {self._stream} cannot go on: the checkpoint gave {self._given} pieces of a pack that now "
                f"has {-(-len(pack) // self._raw_length)}: restore the changed files of {self._corpus.source.key}"
            )
        return pack

    def _finish_pack(self) -> None:
        self._pieces_before += self._given
        self._counts += self._pack_counts
        self._pack_counts = Counter()
        if self._pack_end.epoch != self._start.epoch:
            if self._pieces_before == 0:
                bad = {kind: count for kind, count in self._counts.items() if kind not in (DOCUMENTS, TOKENS)}
                shards = self._corpus.shard_order(self._stream, self._start.epoch)
                raise ValueError(
                    f"{self._corpus.source.key}: a whole epoch of stream {self._stream} (shards {sorted(shards)}) "
                    f"holds no text (bad rows: {bad or 'none'}): repair or remove these files"
                )
            self._pieces_before = 0
            self._rows = None
        self._start, self._given, self._pack = self._pack_end, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: start of the current pack, pieces given, counts before and in the pack."""
        return {
            "epoch": self._start.epoch,
            "shard": self._start.shard,
            "row": self._start.row,
            "pieces_before_pack": self._pieces_before,
            "pieces_given": self._given,
            "counts": dict(self._counts),
            "pack_counts": dict(self._pack_counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last piece given before `state_dict`."""
        self._start = Position(state["epoch"], state["shard"], state["row"])
        self._pieces_before = state["pieces_before_pack"]
        self._given = state["pieces_given"]
        self._counts = Counter(state["counts"])
        self._pack_counts = Counter(state["pack_counts"])
        self._pack, self._rows = None, None
