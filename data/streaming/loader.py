"""Batches of training examples: one rank's share of a global order, with a resumable state."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.registry import targets_length
from data.sources.base import ShardSource
from data.sources.open import open_shards
from data.sources.rows import BadRow
from data.streaming.group import StreamGroup
from data.streaming.identity import describe_identity, describe_text, resume_place
from data.streaming.schedule import Schedule, check_ranks, check_shards, check_streams
from data.streaming.stream import BAD_KINDS, DOCUMENTS, ROWS, SPLIT_DOCUMENTS, TOKENS
from data.streaming.task_examples import TaskExamples, open_tasks
from data.streaming.task_stream import CUT_INPUTS, CUT_TARGETS
from data.streaming.worker import WorkerPool
from data.tokenizer import Tokenizer

Batch = dict[str, NDArray[np.int64]]


class PretrainingLoader:
    """Endless batches of one rank, resumable after any batch, also with other numbers of ranks and workers.

    See ``Schedule`` for the order of the examples.

    Args:
        config: the ``data`` section.
        tokenizer: the vocabulary.
        rank, world_size: this rank and the number of data-parallel ranks.
        batch_size: examples per rank and batch.
        sources: what to read in place of the configured text or tasks, one item for each of ``sources``.

    Attributes:
        targets_length: target tokens per example.
        sources: shards of each of ``config.train_sources()``, or tasks; another loader of the same may share them.

    Raises:
        ValueError: num_streams is not a multiple of world_size or exceeds the number of shards, too many workers, no
            files, too few sentinels.
        DataError: a remote source cannot be reached.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        sources: Sequence[ShardSource] | Sequence[TaskExamples] | None = None,
    ) -> None:
        check_ranks(rank, world_size, batch_size)
        self._config, self._tokenizer = config, tokenizer
        self._schedule = Schedule(rank, world_size, batch_size, config.num_streams)
        self.targets_length = targets_length(config, tokenizer)
        self.sources: Sequence[ShardSource] | Sequence[TaskExamples]
        if config.objective == "tasks":
            tasks = [source for source in sources or () if isinstance(source, TaskExamples)]
            self.sources = tasks = tasks or open_tasks(config, "train")
            self._names = [task.name for task in tasks]
        else:
            train_sources = config.train_sources()
            shards = [s for s in sources or () if not isinstance(s, TaskExamples)]
            self.sources = shards = shards or [open_shards(config, source) for source in train_sources]
            self._names = [source.name for source in train_sources]
            check_shards(config, world_size, shards)
        check_streams(config, world_size)
        self._identity = describe_identity(config, self.sources, tokenizer.fingerprint)
        # State of each own stream after the last batch returned, regardless of what workers have read ahead.
        self._states = StreamGroup(config, tokenizer, self.sources, self._schedule.own_streams()).state_dicts()
        self._next_example = 0
        self._server: StreamGroup | WorkerPool | None = None
        self._retries = 0

    @functools.cached_property
    def _text(self) -> dict[str, list[str]]:
        return describe_text(self._config, self.sources)

    def start(self) -> None:
        """Start the workers, if any and not running yet; they then prepare the next batches in the background."""
        if self._server is not None:
            return
        own, workers = self._schedule.own_streams(), self._config.num_workers
        shares = [own[i::workers] for i in range(workers)] if workers else [own]
        groups = [StreamGroup(self._config, self._tokenizer, self.sources, share) for share in shares]
        for group in groups:
            group.load_state_dicts(self._states)
        if workers:
            self._server = WorkerPool(groups, self._schedule, self._next_example, self._config.prefetch_batches)
        else:
            (self._server,) = groups

    def close(self) -> None:
        """Stop the workers. ``start`` and ``next_batch`` start new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def next_batch(self) -> Batch:
        """Return the next batch. If the call fails or is interrupted, no example is consumed.

        Returns:
            input_ids int64 [batch, inputs_length], padded with the pad id; labels int64 [batch, targets_length], padded
            with ``IGNORED_LABEL``.

        Raises:
            DataError: the data cannot be read, too many rows are bad, or a worker died.
        """
        try:
            self.start()
            assert self._server is not None
            taken = self._server.take(self._schedule.streams(self._next_example))
        except BaseException:
            # The state stays valid for a checkpoint, and the next call starts again from it.
            self.close()
            raise
        self._next_example = self._schedule.after(self._next_example)
        self._states |= taken.states
        self._retries += taken.retries
        return {"input_ids": taken.inputs.astype(np.int64), "labels": taken.labels.astype(np.int64)}

    @property
    def counts(self) -> Counter[str]:
        """Rows, documents, tokens and bad rows by kind, read by this rank's streams since step 0."""
        total: Counter[str] = Counter()
        for state in self._states.values():
            for source in state["sources"]:
                total.update(source["counts"])
                total.update(source["pack_counts"])
        return total

    @property
    def bad_rows(self) -> dict[str, int]:
        """Bad rows of this rank's streams since step 0, by kind (``BadRow``); kinds that occurred only."""
        counts = self.counts
        return {kind.value: counts[kind.value] for kind in BadRow if counts[kind.value]}

    @property
    def documents(self) -> int:
        """Documents read by this rank's streams since step 0, including those of the current packs."""
        return self.counts[DOCUMENTS]

    @property
    def tokens(self) -> int:
        """Raw tokens of the documents read by this rank's streams since step 0."""
        return self.counts[TOKENS]

    @property
    def epoch(self) -> int:
        """Lowest epoch among this rank's streams and sources, from 0."""
        return min(source["epoch"] for state in self._states.values() for source in state["sources"])

    def metrics(self) -> dict[str, int]:
        """Return metrics to sum over ranks; the keys are the same on every rank.

        Since step 0: rows, documents, bad rows, documents split before tokenization, examples of tasks that were cut,
        and for each source the raw tokens of its examples. Since the start of the process: retries of remote sources.
        """
        counts = self.counts
        cut = {f"data_{kind}": counts[kind] for kind in (CUT_INPUTS, CUT_TARGETS)}
        tokens = Counter(dict.fromkeys(self._names, 0))
        for state in self._states.values():
            for name, source in zip(self._names, state["sources"], strict=True):
                tokens[name] += source["tokens_given"]
        return {
            "data_rows": counts[ROWS],
            "data_documents": counts[DOCUMENTS],
            "data_bad_rows": sum(counts[kind] for kind in BAD_KINDS),
            "data_split_documents": counts[SPLIT_DOCUMENTS],
            "data_retries": self._retries,
            **(cut if self._config.objective == "tasks" else {}),
            **{f"data_tokens_{name}": tokens[name] for name in self._names},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank's streams as JSON values; ``merge_states`` merges those of all ranks."""
        state: dict[str, Any] = {"text": self._text} if self._schedule.rank == 0 else {}  # once is enough
        return state | {
            "identity": dict(self._identity),
            "next_example": self._next_example,
            "streams": {str(stream): state for stream, state in self._states.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly after the last batch returned before ``state_dict``, or see ``data.on_other_text``.

        Args:
            state: merged states of all ranks; with an unchanged world size this rank's own state is sufficient.

        Raises:
            ValueError: the state is of other data settings or other text, or lacks a stream of this rank.
        """
        present = {"identity": self._identity, "text": self._text}
        if resume_place(self._config, state, present) == "beginning":
            return
        own = self._schedule.own_streams()
        missing = [stream for stream in own if str(stream) not in state["streams"]]
        if missing:
            raise ValueError(
                f"the checkpoint's data state lacks streams {missing} of rank {self._schedule.rank}: load the merged "
                "states of all ranks (merge_states)"
            )
        self.close()
        self._states = {stream: state["streams"][str(stream)] for stream in own}
        self._next_example = state["next_example"]


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge ``PretrainingLoader.state_dict`` of all ranks, taken after the same step, into one state.

    Raises:
        ValueError: there is no state, or the states differ in step or settings or share streams.
    """
    if not states:
        raise ValueError("there is no data state to merge: pass the state of every rank")
    streams: dict[str, Any] = {}
    for state in states:
        for key in ("identity", "next_example"):
            if state[key] != states[0][key]:
                raise ValueError(f"data states of different runs or steps: {key} = {state[key]} and {states[0][key]}")
        repeated = streams.keys() & state["streams"].keys()
        if repeated:
            raise ValueError(f"two data states hold the streams {sorted(repeated)}: pass the state of every rank once")
        streams.update(state["streams"])
    ordered = {stream: streams[stream] for stream in sorted(streams, key=int)}
    merged = {"identity": states[0]["identity"], "next_example": states[0]["next_example"], "streams": ordered}
    return next(({"text": state["text"]} for state in states if "text" in state), {}) | merged
