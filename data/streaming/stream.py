"""One logical stream of one source: packs documents, cuts packs into examples, and keeps a small exact state."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig, key_beside
from data.objectives.base import Examples, Objective
from data.sources.retry import DataError
from data.sources.rows import BadRow, Row, advise
from data.streaming.corpus import DOCUMENT_ORDER, Corpus, Position
from data.tokenizer import Tokenizer

ROWS, DOCUMENTS, TOKENS, EXAMPLES = "rows", "documents", "tokens", "examples"
SPLIT_DOCUMENTS = "split_documents"
# Blank lines are not a sign of bad data.
BAD_KINDS = [kind.value for kind in BadRow if kind is not BadRow.BLANK_LINE]
MIN_ROWS_OF_BAD_FRACTION = 1000


class Example(NamedTuple):
    """One example, and its number in this stream and epoch."""

    inputs: NDArray[np.int32]  # [inputs_length]
    labels: NDArray[np.int32]  # [targets_length]
    epoch: int
    number: int


class ExampleStream:
    """Packs of ``documents_per_pack`` documents, concatenated without separator and cut every ``raw_length`` tokens.

    The last chunk of a pack holds the remaining tokens and may be shorter. With ``shuffle_buffer`` that many documents
    are read and shuffled together before they are packed. Packs and buffers do not extend over the end of an epoch.
    Epochs repeat without end.

    The state consists of the position at which the current buffer starts and the numbers of its packs and of the
    pack's chunks already given: it holds neither text nor tokens. After a load the buffer is read again, and its rows
    are not counted twice.

    Args:
        corpus: the source's shards, dealt to streams.
        tokenizer: the vocabulary.
        objective: turns packs into examples.
        stream: number of this stream.
        config: the ``data`` section.
        mask_use: first word of the seeds of the masks.
        shuffle_buffer: documents shuffled together; 0 keeps the order of the corpus.

    Attributes:
        examples_given: examples returned since step 0.
        tokens_given: their raw tokens.
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
        self._start = Position(0, 0, 0)  # of the current buffer
        self._packs_given = 0  # of the current buffer
        self._chunks_before = 0  # of the epoch, before the current pack
        self._chunks_given = 0  # of the current pack
        self.examples_given = 0
        self.tokens_given = 0
        self._counts: Counter[str] = Counter()  # of all packs before the current one
        self._pack_counts: Counter[str] = Counter()  # of the current pack
        self._drop_read_data()

    def _drop_read_data(self) -> None:
        """Reset everything that is read again from the state."""
        self._rows: Iterator[tuple[Row, Position]] | None = None
        self._buffer: list[str] | None = None
        self._buffer_counts: Counter[str] = Counter()
        self._buffer_end = self._start
        self._examples: Examples | None = None
        self._pack_tokens = 0

    @property
    def epoch(self) -> int:
        """Epoch of the current pack, from 0."""
        return self._start.epoch

    @property
    def mean_length(self) -> float:
        """Mean raw tokens per example over the packs read; before the first pack the length of a full example."""
        examples = self._counts[EXAMPLES] + self._pack_counts[EXAMPLES]
        tokens = self._counts[TOKENS] + self._pack_counts[TOKENS]
        return tokens / examples if examples else float(self._objective.raw_length)

    def next_example(self) -> Example:
        """Return the next example.

        Raises:
            DataError: an epoch of this stream contains no text, too many rows are bad, the files differ from those of
                the loaded state, or a source cannot be read.
        """
        if self._examples is None:
            self._examples = self._read_pack()
        while not len(self._examples[0]):
            self._finish_pack()
            self._examples = self._read_pack()
        (inputs, labels), index = self._examples, self._chunks_given
        example = Example(inputs[index], labels[index], self._start.epoch, self._chunks_before + index)
        raw_length = self._objective.raw_length
        self.tokens_given += min(raw_length, self._pack_tokens - index * raw_length)
        self.examples_given += 1
        self._chunks_given += 1
        if self._chunks_given == len(inputs):
            self._finish_pack()
        return example

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
            texts = [text for document in documents for text in _split(document, limit)]
        tokens = np.concatenate([np.empty(0, np.int32), *self._tokenizer.encode_batch(texts)])
        counts[TOKENS] = self._pack_tokens = len(tokens)
        counts[EXAMPLES] = chunks = -(-len(tokens) // self._objective.raw_length)
        self._pack_counts = +counts
        # A pack is finished with its last chunk, so a saved number of chunks is below that of the pack.
        if self._chunks_given and self._chunks_given >= chunks:
            raise DataError(
                f"stream {self._stream} cannot resume: the checkpoint gave {self._chunks_given} chunks of a pack that "
                f"now has {chunks}: restore the changed files of {self._corpus.source.key}"
            )
        rng = self._corpus.rng(self._mask_use, self._stream, self._start.epoch, self._chunks_before)
        return self._objective.examples(tokens, rng)

    def _read_buffer(self) -> list[str]:
        """Read and shuffle the documents of one buffer, count its rows and check the bad ones against the limit."""
        if self._rows is None:
            self._rows = self._corpus.rows(self._stream, self._start)
        counts: Counter[str] = Counter()
        documents: list[str] = []
        # Unless the buffer fills up before the end of the epoch, the next buffer starts the next epoch.
        self._buffer_end = Position(self._start.epoch + 1, 0, 0)
        size = self._shuffle_buffer or self._config.documents_per_pack
        for read, (row, position) in enumerate(self._rows, 1):
            counts[ROWS] = read
            if isinstance(row, BadRow):
                counts[row.value] += 1
                self._check_bad_fraction(counts, position)
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

    def _check_bad_fraction(self, counts: Counter[str], position: Position) -> None:
        if self._packs_given:
            return  # after a load: the rows of this buffer are in the state's counts and were checked
        total = counts + self._counts
        bad, rows = sum(total[kind] for kind in BAD_KINDS), total[ROWS]
        limit = self._config.max_bad_fraction
        if bad > limit * max(rows, MIN_ROWS_OF_BAD_FRACTION):
            kinds = ", ".join(f"{total[kind]} {kind}" for kind in BAD_KINDS if total[kind])
            shard = self._corpus.shard_order(self._stream, position.epoch)[position.shard]
            source = self._corpus.source
            advice = advise(total, key_beside(source.key, "text_column"))
            raise DataError(
                f"{bad} of the {rows} rows that stream {self._stream} has read are bad ({kinds}), more than "
                f"data.max_bad_fraction = {limit}; the last is row {position.row - 1} of "
                f"{source.describe(shard)}: {advice}; "
                "repair or remove these files, or raise data.max_bad_fraction"
            )

    def _finish_pack(self) -> None:
        assert self._buffer is not None
        self._chunks_before += self._chunks_given
        self._counts += self._pack_counts
        self._pack_counts = Counter()
        self._chunks_given, self._examples = 0, None
        self._packs_given += 1
        if self._packs_given * self._config.documents_per_pack >= len(self._buffer):
            self._finish_buffer()

    def _finish_buffer(self) -> None:
        if self._buffer_end.epoch != self._start.epoch:
            self._check_epoch_has_text()
            self._chunks_before = 0
            self._rows = None
        self._start, self._packs_given, self._buffer = self._buffer_end, 0, None

    def _check_epoch_has_text(self) -> None:
        if self._chunks_before == 0:
            source = self._corpus.source
            bad = {kind.value: self._counts[kind.value] for kind in BadRow if self._counts[kind.value]}
            kinds = "bad rows: " + ", ".join(f"{count} {kind}" for kind, count in bad.items()) if bad else "no rows"
            shards = sorted(self._corpus.shard_order(self._stream, self._start.epoch))
            several = len(shards) > 1
            others = f" and the other shards of stream {self._stream} ({len(shards) - 1})" if several else ""
            verb = "hold" if several else "holds"
            advice = advise(bad, key_beside(source.key, "text_column")) or "remove empty files"
            raise DataError(
                f"{source.describe(shards[0])}{others} {verb} no text ({kinds}): "
                f"{advice}; each of the {self._corpus.num_streams} streams (data.num_streams) needs text of its own"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return start of the current buffer, packs and chunks given, counts before and in the pack as JSON values."""
        return {
            "epoch": self._start.epoch,
            "shard": self._start.shard,
            "row": self._start.row,
            "packs_given": self._packs_given,
            "pieces_before_pack": self._chunks_before,
            "pieces_given": self._chunks_given,
            "examples_given": self.examples_given,
            "tokens_given": self.tokens_given,
            "counts": dict(self._counts),
            "pack_counts": dict(self._pack_counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last example returned before ``state_dict``."""
        self._start = Position(state["epoch"], state["shard"], state["row"])
        self._packs_given = state["packs_given"]
        self._chunks_before = state["pieces_before_pack"]
        self._chunks_given = state["pieces_given"]
        self.examples_given = state["examples_given"]
        self.tokens_given = state["tokens_given"]
        self._counts = Counter(state["counts"])
        self._pack_counts = Counter(state["pack_counts"])
        self._drop_read_data()


def _split(text: str, limit: int) -> list[str]:
    """Split a text into chunks of at most ``limit`` characters, cut before white space where possible."""
    chunks = []
    while len(text) > limit:
        cut = max(text.rfind(" ", 1, limit), text.rfind("\n", 1, limit))
        cut = cut if cut > 0 else limit
        chunks.append(text[:cut])
        text = text[cut:]
    return [*chunks, text]
