"""Batches of training examples: one rank's share of a global order, and its state.

Global example n is taken from stream n % num_streams and belongs to rank n % world_size. Step k of a run holds the
examples from k * world_size * batch_size on, so its set of examples is the same at any number of ranks and workers.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.registry import make_objective
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.sources.rows import BadRow
from data.streaming.group import Schedule, StreamGroup
from data.streaming.stream import BAD_KINDS, DOCUMENTS, ROWS, SPLIT_DOCUMENTS, TOKENS
from data.streaming.worker import WorkerPool
from data.tokenizer import Tokenizer

# Goes up when the same settings and text come to give other examples.
EXAMPLES_VERSION = 2

Batch = dict[str, NDArray[np.int64]]


class PretrainingLoader:
    """Endless batches of one rank, resumable at any batch, at another number of ranks or workers too.

    Args:
        config: the `data` section.
        tokenizer: the vocabulary.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        sources: shards to read in place of those the config names, one for each of its sources.

    Raises:
        ValueError: num_streams is no multiple of world_size or more than the shards, too many workers, no files, too
            few sentinels; (DataError) a remote source cannot be reached.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        sources: Sequence[ShardSource] | None = None,
    ) -> None:
        check_ranks(rank, world_size, batch_size)
        _check_streams(config, world_size)
        self._config, self._tokenizer = config, tokenizer
        self._schedule = Schedule(rank, world_size, batch_size, config.num_streams)
        self.targets_length = make_objective(config, tokenizer).targets_length
        named = config.train_sources()
        #: Shards of each source; another loader of the same text may share them.
        self.sources = sources or [open_shards(config, source) for source in named]
        self._names = [source.name for source in named]
        self._own = range(rank, config.num_streams, world_size)
        #: Where the training is, whatever workers have read ahead.
        self._states = StreamGroup(config, tokenizer, self.sources, self._own).state_dicts()
        self._next_example = 0
        self._server: StreamGroup | WorkerPool | None = None
        self._retries = 0
        self._identity = self._describe()

    def _describe(self) -> dict[str, Any]:
        """What fixes the order and content of the examples: a state can only be continued under the same."""
        c = self._config
        shards = [source.num_shards for source in self.sources]
        identity: dict[str, Any] = {
            "data.num_streams": c.num_streams,
            "data.documents_per_pack": c.documents_per_pack,
            "data.shuffle_buffer": c.shuffle_buffer,
            "data.max_document_length": c.max_document_length,
            "data.objective": c.objective,
            "data.inputs_length": c.inputs_length,
            "data.noise_density": c.noise_density,
            "data.mean_noise_span_length": c.mean_noise_span_length,
            "data.seed": c.seed,
            "number of shards": shards[0] if len(shards) == 1 else shards,
            "fingerprint of data.vocabulary": self._tokenizer.fingerprint,
            "version of this program's examples": EXAMPLES_VERSION,
        }
        if c.mixture:
            identity["names and weights of data.mixture"] = [[item.name, float(item.weight)] for item in c.mixture]
        return identity

    def start(self) -> None:
        """Starts the workers, if there are any and they do not run: they prepare the next batches meanwhile."""
        if self._server is None:
            workers = self._config.num_workers
            parts = [self._own[i::workers] for i in range(workers)] if workers else [self._own]
            groups = [StreamGroup(self._config, self._tokenizer, self.sources, part) for part in parts]
            for group in groups:
                group.load_state_dicts(self._states)
            self._server = (
                WorkerPool(groups, self._schedule, self._next_example, self._config.prefetch_batches)
                if workers
                else groups[0]
            )

    def close(self) -> None:
        """Ends the workers; the loader can go on, with new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def next_batch(self) -> Batch:
        """input_ids int64 [batch, inputs_length] padded with 0; labels int64 [batch, targets_length] padded with -100.

        A call that fails or is interrupted takes nothing: the next one, and the state, are as if it had not been made.

        Raises:
            DataError: the data cannot be read, too much of it is bad, or a worker died.
        """
        try:
            self.start()
            assert self._server is not None
            taken = self._server.take(self._schedule.streams(self._next_example))
        except BaseException:
            # A checkpoint may still be written after it, and the next call begins anew from the same states.
            self.close()
            raise
        self._next_example = self._schedule.after(self._next_example)
        self._states |= taken.states
        self._retries += taken.retries
        return {"input_ids": taken.inputs.astype(np.int64), "labels": taken.labels.astype(np.int64)}

    def _source_counts(self) -> list[Counter[str]]:
        """Counts of each source over this rank's streams."""
        totals: list[Counter[str]] = [Counter() for _ in self._names]
        for state in self._states.values():
            for total, source in zip(totals, state["sources"], strict=True):
                total.update(source["counts"])
                total.update(source["pack_counts"])
        return totals

    @property
    def counts(self) -> Counter[str]:
        """Rows, documents, tokens and bad rows by kind, read by this rank's streams since step 0."""
        return sum(self._source_counts(), Counter())

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
        """Lowest epoch among this rank's streams and sources, from 0."""
        return min(source["epoch"] for state in self._states.values() for source in state["sources"])

    def metrics(self) -> dict[str, int]:
        """What to add up over ranks and log; the same keys on every rank.

        Rows, documents, bad rows, documents tokenized in parts and retries of remote sources (these since the process
        began, the others since step 0), and raw tokens of the examples given of each source.
        """
        counts = self.counts
        tokens = Counter(dict.fromkeys(self._names, 0))
        for state in self._states.values():
            tokens.update(
                {name: part["tokens_given"] for name, part in zip(self._names, state["sources"], strict=True)}
            )
        return {
            "data_rows": counts[ROWS],
            "data_documents": counts[DOCUMENTS],
            "data_bad_rows": sum(counts[kind] for kind in BAD_KINDS),
            "data_split_documents": counts[SPLIT_DOCUMENTS],
            "data_retries": self._retries,
            **{f"data_tokens_{name}": tokens[name] for name in self._names},
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON state of this rank's streams; `merge_states` joins those of all ranks."""
        return {
            "identity": dict(self._identity),
            "next_example": self._next_example,
            "streams": {str(stream): state for stream, state in self._states.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the last batch before `state_dict`, bit for bit.

        Args:
            state: merged states of all ranks; at an unchanged world size this rank's own state is enough.

        Raises:
            ValueError: the state is of other data settings, or lacks a stream of this rank.
        """
        for key in self._identity | state["identity"]:
            saved, value = state["identity"].get(key), self._identity.get(key)
            if saved != value:
                raise ValueError(
                    f"{key} = {value!r}, but the checkpoint was made with {saved!r}: restore that value to resume, or "
                    "start a new run"
                )
        missing = [stream for stream in self._own if str(stream) not in state["streams"]]
        if missing:
            raise ValueError(
                f"the checkpoint's data state lacks streams {missing} of rank {self._schedule.rank}: load the merged "
                "states of all ranks (merge_states)"
            )
        self.close()
        self._states = {stream: state["streams"][str(stream)] for stream in self._own}
        self._next_example = state["next_example"]


def check_ranks(rank: int, world_size: int, batch_size: int) -> None:
    """Raises ValueError for a rank or batch size that cannot be."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank} is not in [0, world_size = {world_size})")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")


def _check_streams(config: DataConfig, world_size: int) -> None:
    if config.num_streams % world_size:
        raise ValueError(
            f"data.num_streams = {config.num_streams} is not a multiple of world_size = {world_size}: set "
            f"data.num_streams to a multiple of {world_size}, or use a number of ranks that divides it"
        )
    if config.num_workers > config.num_streams // world_size:
        raise ValueError(
            f"data.num_workers = {config.num_workers} is more than the {config.num_streams // world_size} streams of a "
            f"rank (data.num_streams / ranks): set data.num_workers to at most {config.num_streams // world_size}"
        )


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
