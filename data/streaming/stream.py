"""One stream of one source: documents, packed, cut and made into examples, with a small exact state."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.base import Examples, Objective
from data.sources.retry import DataError
from data.sources.rows import BadRow, Row
from data.streaming.corpus import DOCUMENT_ORDER, Corpus, Position
from data.tokenizer import Tokenizer

ROWS, DOCUMENTS, TOKENS, EXAMPLES = "rows", "documents", "tokens", "examples"
SPLIT_DOCUMENTS = "split_documents"
# Blank lines are as often the work of an editor as of a fault.
BAD_KINDS = [kind.value for kind in BadRow if kind is not BadRow.BLANK_LINE]
MIN_ROWS_OF_BAD_FRACTION = 1000


class Example(NamedTuple):
    """One example and its place: the `number`-th of this stream in this epoch."""

    inputs: NDArray[np.int32]  # [inputs_length]
    labels: NDArray[np.int32]  # [targets_length]
    epoch: int
    number: int


class ExampleStream:
    """Packs of `documents_per_pack` documents, concatenated without separator and cut every `raw_length` tokens.

    The last piece of a pack keeps what is left, and is shorter. With `shuffle_buffer`, that many documents are read and
    shuffled together before they are packed. A pack and a buffer end with their epoch; epochs follow for ever.

    The state is the position where the current buffer starts, how many packs of it and pieces of the pack were given:
    no text, no tokens. After a load the buffer is read again, and its counts with it, so that nothing is counted twice.

    Args:
        corpus: the source's shards, dealt to streams.
        tokenizer: the vocabulary.
        objective: makes the examples.
        stream: number of this stream.
        config: the `data` section.
        mask_use: first word of the seeds of the masks.
        shuffle_buffer: documents; 0 keeps the order of the corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        objective: Objective,
        stream: int,
        config: DataConfig,
        mask_use: int,
        shuffle_buffer: int,
    ) -> None:
        self._corpus, self._tokenizer, self._objective = corpus, tokenizer, objective
        self._stream, self._config, self._mask_use = stream, config, mask_use
        self._shuffle_buffer = shuffle_buffer
        self._start = Position(0, 0, 0)
        self._packs_given = self._pieces_before = self._given = 0
        self.examples_given = 0
        #: Raw tokens of them.
        self.tokens_given = 0
        self._counts: Counter[str] = Counter()
        self._pack_counts: Counter[str] = Counter()
        self._forget()

    def _forget(self) -> None:
        """Drops everything that follows from the state."""
        self._buffer: list[str] | None = None
        self._buffer_counts: Counter[str] = Counter()
        self._buffer_end = self._start
        self._examples: Examples | None = None
        self._pack_tokens = 0
        self._rows: Iterator[tuple[Row, Position]] | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the current pack, from 0."""
        return self._start.epoch

    @property
    def mean_length(self) -> float:
        """Mean raw tokens of the examples of the packs read; those of a full one before the first."""
        examples = self._counts[EXAMPLES] + self._pack_counts[EXAMPLES]
        tokens = self._counts[TOKENS] + self._pack_counts[TOKENS]
        return tokens / examples if examples else float(self._objective.raw_length)

    def next_example(self) -> Example:
        """The next example.

        Raises:
            DataError: a whole epoch of this stream holds no token, too many rows are bad, the files differ from those
                of the loaded state, or a source cannot be read.
        """
        while True:
            if self._examples is None:
                self._examples = self._read_pack()
            inputs, labels = self._examples
            if self._given < len(inputs):
                number = self._pieces_before + self._given
                example = Example(inputs[self._given], labels[self._given], self._start.epoch, number)
                raw = self._objective.raw_length
                self.tokens_given += min(raw, self._pack_tokens - self._given * raw)
                self.examples_given += 1
                self._given += 1
                if self._given == len(inputs):
                    self._finish_pack()
                return example
            self._finish_pack()

    def _read_pack(self) -> Examples:
        if self._buffer is None:
            self._buffer = self._read_buffer()
        per_pack = self._config.documents_per_pack
        documents = self._buffer[self._packs_given * per_pack : (self._packs_given + 1) * per_pack]
        counts = Counter({DOCUMENTS: len(documents)})
        if self._packs_given == 0:
            counts += self._buffer_counts
        texts, limit = documents, self._config.max_document_length
        if split := sum(len(document) > limit for document in documents):
            counts[SPLIT_DOCUMENTS] = split
            texts = [part for document in documents for part in _split(document, limit)]
        tokens = np.concatenate([np.empty(0, np.int32), *self._tokenizer.encode_batch(texts)])
        counts[TOKENS] = self._pack_tokens = len(tokens)
        counts[EXAMPLES] = pieces = -(-len(tokens) // self._objective.raw_length)
        self._pack_counts = +counts
        # A pack all of whose pieces were given is left at once, so a saved count is below the pack's.
        if self._given and self._given >= pieces:
            raise DataError(
                f"stream {self._stream} cannot go on: the checkpoint gave {self._given} pieces of a pack that now has "
                f"{pieces}: restore the changed files of {self._corpus.source.key}"
            )
        rng = self._corpus.rng(self._mask_use, self._stream, self._start.epoch, self._pieces_before)
        return self._objective.examples(tokens, rng)

    def _read_buffer(self) -> list[str]:
        """Documents of one buffer, shuffled; its rows are counted, and the bad ones limited."""
        if self._rows is None:
            self._rows = self._corpus.rows(self._stream, self._start)
        counts: Counter[str] = Counter()
        documents: list[str] = []
        # Stands unless the buffer fills up first: the next one then starts the next epoch.
        self._buffer_end = Position(self._start.epoch + 1, 0, 0)
        size = self._shuffle_buffer or self._config.documents_per_pack
        for read, (row, position) in enumerate(self._rows, 1):
            counts[ROWS] = read
            if isinstance(row, BadRow):
                counts[row.value] += 1
                self._limit_bad_rows(counts, position)
                continue
            documents.append(row)
            if len(documents) == size:
                self._buffer_end = position
                break
        if self._shuffle_buffer:
            order = self._corpus.rng(DOCUMENT_ORDER, self._stream, *self._start).permutation(len(documents))
            documents = [documents[i] for i in order]
        self._buffer_counts = counts
        return documents

    def _limit_bad_rows(self, counts: Counter[str], position: Position) -> None:
        total = counts + self._counts
        bad, rows = sum(total[kind] for kind in BAD_KINDS), total[ROWS]
        limit = self._config.max_bad_fraction
        if self._packs_given == 0 and bad > limit * max(rows, MIN_ROWS_OF_BAD_FRACTION):
            kinds = ", ".join(f"{total[kind]} {kind}" for kind in BAD_KINDS if total[kind])
            shard = self._corpus.shard_order(self._stream, position.epoch)[position.shard]
            raise DataError(
                f"{bad} of the {rows} rows that stream {self._stream} has read are bad ({kinds}), more than "
                f"data.max_bad_fraction = {limit}; the last is row {position.row - 1} of "
                f"{self._corpus.source.describe(shard)}: repair or remove these files, check text_column, or raise "
                "data.max_bad_fraction"
            )

    def _finish_pack(self) -> None:
        assert self._buffer is not None
        self._pieces_before += self._given
        self._counts += self._pack_counts
        self._pack_counts = Counter()
        self._given, self._examples = 0, None
        self._packs_given += 1
        if self._packs_given * self._config.documents_per_pack < len(self._buffer):
            return
        if self._buffer_end.epoch != self._start.epoch:
            self._refuse_empty_epoch()
            self._pieces_before = 0
            self._rows = None
        self._start, self._packs_given, self._buffer = self._buffer_end, 0, None

    def _refuse_empty_epoch(self) -> None:
        if self._pieces_before == 0:
            bad = {kind.value: self._counts[kind.value] for kind in BadRow if self._counts[kind.value]}
            shards = self._corpus.shard_order(self._stream, self._start.epoch)
            raise DataError(
                f"{self._corpus.source.key}: a whole epoch of stream {self._stream} (shards {sorted(shards)}) "
                f"holds no text (bad rows: {bad or 'none'}): repair or remove these files"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: start of the current buffer, packs and pieces given, counts before and in the pack."""
        return {
            "epoch": self._start.epoch,
            "shard": self._start.shard,
            "row": self._start.row,
            "packs_given": self._packs_given,
            "pieces_before_pack": self._pieces_before,
            "pieces_given": self._given,
            "examples_given": self.examples_given,
            "tokens_given": self.tokens_given,
            "counts": dict(self._counts),
            "pack_counts": dict(self._pack_counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last example given before `state_dict`."""
        self._start = Position(state["epoch"], state["shard"], state["row"])
        self._packs_given = state["packs_given"]
        self._pieces_before = state["pieces_before_pack"]
        self._given = state["pieces_given"]
        self.examples_given = state["examples_given"]
        self.tokens_given = state["tokens_given"]
        self._counts = Counter(state["counts"])
        self._pack_counts = Counter(state["pack_counts"])
        self._forget()


def _split(text: str, limit: int) -> list[str]:
    """Parts of at most `limit` characters, cut before white space where there is some."""
    parts = []
    while len(text) > limit:
        cut = max(text.rfind(" ", 1, limit), text.rfind("\n", 1, limit))
        cut = cut if cut > 0 else limit
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]
