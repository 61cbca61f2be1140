"""Batches of span-corruption examples: the training order over ranks, its state, and the fixed validation set.

Global example n is taken from stream n % num_streams and belongs to rank n % world_size. Step k of a run holds the
examples from k * world_size * batch_size on, so its set of examples is the same at any number of ranks.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.corpus import TRAIN_MASK, VALIDATION_MASK, BadRow, Corpus, ShardSource, Split, open_shards
from data.packing import DOCUMENTS, TOKENS, Piece, PieceStream
from data.span_corruption import IntArray, check_sentinels, corrupt, random_spans_mask, raw_and_target_lengths
from data.tokenizer import Tokenizer

IGNORED_LABEL = -100

Batch = dict[str, NDArray[np.int64]]


class ExampleMaker:
    """Raw pieces to rows of fixed shape.

    Raises:
        ValueError: the examples need more sentinels than the vocabulary has.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        density, mean_span = config.noise_density, config.mean_noise_span_length
        check_sentinels(config.inputs_length, density, mean_span, tokenizer.num_sentinels)
        self.raw_length, self.targets_length = raw_and_target_lengths(config.inputs_length, density, mean_span)

    def mask_and_corrupt(self, piece: Piece, seed: list[int]) -> tuple[IntArray, IntArray]:
        """(inputs, targets) of a piece, unpadded; the mask follows from `seed` and the piece's place alone."""
        mask = random_spans_mask(
            len(piece.tokens),
            self._config.noise_density,
            self._config.mean_noise_span_length,
            np.random.default_rng([*seed, piece.epoch, piece.number]),
        )
        inputs, targets = corrupt(piece.tokens, mask, self._tokenizer.first_sentinel_id, self._tokenizer.eos_id)
        return self._fit(inputs, self._config.inputs_length), self._fit(targets, self.targets_length)

    def _fit(self, ids: IntArray, length: int) -> IntArray:
        """Cuts before the EOS, as T5 does: at a few lengths float32 rounding masks one token more than was planned."""
        if len(ids) <= length:
            return ids
        return np.append(ids[: length - 1], ids[-1:])

    def batch(self, examples: list[tuple[IntArray, IntArray]]) -> Batch:
        """input_ids int64 [batch, inputs_length], padded with pad; labels int64 [batch, targets_length], with -100."""
        input_ids = np.full((len(examples), self._config.inputs_length), self._tokenizer.pad_id, np.int64)
        labels = np.full((len(examples), self.targets_length), IGNORED_LABEL, np.int64)
        for row, (inputs, targets) in enumerate(examples):
            input_ids[row, : len(inputs)] = inputs
            labels[row, : len(targets)] = targets
        return {"input_ids": input_ids, "labels": labels}


def _check_ranks(rank: int, world_size: int, batch_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} is not in [0, world_size = {world_size})")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")


class PretrainingLoader:
    """Endless batches of one rank, resumable at any batch, at another number of ranks too.

    Args:
        config: the `data` section.
        tokenizer: the vocabulary.
        split: which shards to read.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        source: shards to read in place of those the config names.

    Raises:
        ValueError: num_streams is no multiple of world_size or more than the shards, no files, too few sentinels.
        ConnectionError: the Hub cannot be reached.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        split: Split = "train",
        rank: int,
        world_size: int,
        batch_size: int,
        source: ShardSource | None = None,
    ) -> None:
        _check_ranks(rank, world_size, batch_size)
        if config.num_streams % world_size:
            raise ValueError(
                f"data.num_streams = {config.num_streams} is not a multiple of world_size = {world_size}: set "
                f"data.num_streams to a multiple of {world_size}, or use a number of ranks that divides it"
            )
        self._config = config
        self._rank, self._world_size, self._batch_size = rank, world_size, batch_size
        self._maker = ExampleMaker(config, tokenizer)
        corpus = Corpus(source or open_shards(config, split), config.num_streams, config.seed)
        self._streams = {
            stream: PieceStream(corpus, tokenizer, stream, self._maker.raw_length, config.documents_per_pack)
            for stream in range(rank, config.num_streams, world_size)
        }
        self._next_example = 0
        #: What fixes the order and content of the examples: a state can only be continued under the same.
        self._identity: dict[str, Any] = {
            "data.num_streams": config.num_streams,
            "data.documents_per_pack": config.documents_per_pack,
            "data.inputs_length": config.inputs_length,
            "data.noise_density": config.noise_density,
            "data.mean_noise_span_length": config.mean_noise_span_length,
            "data.seed": config.seed,
            "number of shards": corpus.source.num_shards,
            "fingerprint of data.vocabulary": tokenizer.fingerprint,
        }

    @property
    def targets_length(self) -> int:
        """Tokens per row of labels."""
        return self._maker.targets_length

    @property
    def counts(self) -> Counter[str]:
        """Documents, tokens and bad rows by kind, read by this rank's streams since step 0."""
        return sum((stream.counts for stream in self._streams.values()), Counter())

    @property
    def bad_rows(self) -> dict[str, int]:
        """Skipped rows of this rank's streams by kind (`BadRow`), since step 0; kinds never seen are left out."""
        counts = self.counts
        return {kind.value: counts[kind.value] for kind in BadRow if counts[kind.value]}

    @property
    def documents(self) -> int:
        """Documents read by this rank's streams since step 0, those of the packs in hand included."""
        return self.counts[DOCUMENTS]

    @property
    def tokens(self) -> int:
        """Raw tokens of these documents."""
        return self.counts[TOKENS]

    @property
    def epoch(self) -> int:
        """Lowest epoch among this rank's streams, from 0."""
        return min(stream.epoch for stream in self._streams.values())

    def next_batch(self) -> Batch:
        """input_ids int64 [batch, inputs_length] padded with 0; labels int64 [batch, targets_length] padded with -100.

        A call that fails or is interrupted takes nothing: the next one, and the state, are as if it had not been made.

        Raises:
            ValueError: a stream holds no text at all.
            ConnectionError: the Hub cannot be reached.
        """
        end = self._next_example + self._world_size * self._batch_size
        first = self._next_example + (self._rank - self._next_example) % self._world_size
        order = [n % self._config.num_streams for n in range(first, end, self._world_size)]
        before = {stream: self._streams[stream].state_dict() for stream in order}
        try:
            pieces = [self._streams[stream].next_piece() for stream in order]
        except BaseException:
            # A broken connection, or a signal: a checkpoint may still be written after it.
            for stream, state in before.items():
                self._streams[stream].load_state_dict(state)
            raise
        self._next_example = end
        seed = self._config.seed
        return self._maker.batch(
            [
                self._maker.mask_and_corrupt(piece, [TRAIN_MASK, seed, stream])
                for stream, piece in zip(order, pieces, strict=True)
            ]
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON state of this rank's streams; `merge_states` joins those of all ranks."""
        return {
            "identity": dict(self._identity),
            "next_example": self._next_example,
            "streams": {str(stream): state.state_dict() for stream, state in self._streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last batch before `state_dict`, bit for bit.

        Args:
            state: merged states of all ranks; at an unchanged world size this rank's own state is enough.

        Raises:
            ValueError: the state is of other data settings, or lacks a stream of this rank.
        """
        for key, value in self._identity.items():
            saved = state["identity"].get(key)
            if saved != value:
                raise ValueError(
                    f"{key} = {value!r}, but the checkpoint was made with {saved!r}: restore that value to resume, or "
                    "start a new run"
                )
        missing = [stream for stream in self._streams if str(stream) not in state["streams"]]
        if missing:
            raise ValueError(
                f"the checkpoint's data state lacks streams {missing} of rank {self._rank}: load the merged states of "
                "all ranks (merge_states)"
            )
        for stream, pieces in self._streams.items():
            pieces.load_state_dict(state["streams"][str(stream)])
        self._next_example = state["next_example"]


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One state from `PretrainingLoader.state_dict` of every rank, taken after the same step.

    Raises:
        ValueError: no state, or states of different steps, settings or overlapping streams.
    """
    if not states:
        raise ValueError("there is no data state to merge: pass the state of every rank")
    streams: dict[str, Any] = {}
    for state in states:
        for key in ("identity", "next_example"):
            if state[key] != states[0][key]:
                raise ValueError(f"data states of different runs or steps: {key} = {state[key]} and {states[0][key]}")
        twice = streams.keys() & state["streams"].keys()
        if twice:
            raise ValueError(f"two data states hold the streams {sorted(twice)}: pass the state of every rank once")
        streams.update(state["streams"])
    ordered = {stream: streams[stream] for stream in sorted(streams, key=int)}
    return {"identity": states[0]["identity"], "next_example": states[0]["next_example"], "streams": ordered}


def validation_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    num_batches: int,
    source: ShardSource | None = None,
) -> list[Batch]:
    """This rank's share of the first num_batches * world_size * batch_size examples of the validation split.

    The split is read as one stream in file order with masks fixed by data.seed: every call gives the same examples,
    and all ranks together hold the same set at any world size. Rank r keeps example n when n % world_size == r.

    Args:
        batch_size: examples per rank and batch.
        num_batches: batches per rank, all ranks together training.eval_examples examples.
        source: shards to read in place of those the config names.

    Returns:
        num_batches batches, as of `PretrainingLoader.next_batch`.

    Raises:
        ValueError: the split has too few examples; names the largest training.eval_examples.
    """
    _check_ranks(rank, world_size, batch_size)
    maker = ExampleMaker(config, tokenizer)
    corpus = Corpus(source or open_shards(config, "validation"), num_streams=1, seed=None)
    stream = PieceStream(corpus, tokenizer, 0, maker.raw_length, config.documents_per_pack)
    examples = []
    per_pass = world_size * batch_size
    for n in range(num_batches * per_pass):
        piece = stream.next_piece()
        if piece.epoch > 0:
            largest = n // per_pass * per_pass
            fix = f"set training.eval_examples to at most {largest}" if largest else "use a smaller micro-batch"
            raise ValueError(
                f"training.eval_examples = {num_batches * per_pass}, but {corpus.source.key} has {n} examples: {fix}, "
                "or add validation text"
            )
        if n % world_size == rank:
            examples.append(maker.mask_and_corrupt(piece, [VALIDATION_MASK, config.seed, 0]))
    return [maker.batch(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
