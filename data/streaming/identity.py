"""The identity of the training examples: a data state is loaded as it is only under the identity it was saved with."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from common.logs import NOTICE, get_logger
from data.config import DataConfig
from data.sources.base import ShardSource
from data.streaming.task_examples import TaskExamples
from data.streaming.task_stream import task_shares

# Increment when the same settings and text give other examples.
EXAMPLES_VERSION = 2
SHARDS, VOCABULARY = "number of shards", "fingerprint of data.vocabulary"

logger = get_logger(__name__)


def describe_identity(
    config: DataConfig, sources: Sequence[ShardSource] | Sequence[TaskExamples], fingerprint: str
) -> dict[str, Any]:
    """Return everything that determines order and content of the examples, as JSON values.

    Args:
        config: the ``data`` section.
        sources: shards of each of ``config.train_sources()``, or tasks.
        fingerprint: of the vocabulary.
    """
    if config.objective == "tasks":
        tasks = [source for source in sources if isinstance(source, TaskExamples)]
        return {
            "data.num_streams": config.num_streams,
            "data.objective": config.objective,
            "data.inputs_length": config.inputs_length,
            "data.targets_length": config.targets_length,
            "data.sentinels": config.sentinels,
            "data.seed": config.seed,
            "names and shares of data.tasks": [[name, share] for name, share in task_shares(config, tasks).items()],
            VOCABULARY: fingerprint,
            "version of this program's examples": EXAMPLES_VERSION,
        }
    shards = [source.num_shards for source in sources if not isinstance(source, TaskExamples)]
    identity: dict[str, Any] = {
        "data.num_streams": config.num_streams,
        "data.documents_per_pack": config.documents_per_pack,
        "data.shuffle_buffer": config.shuffle_buffer,
        "data.max_document_length": config.max_document_length,
        "data.objective": config.objective,
        "data.inputs_length": config.inputs_length,
        "data.noise_density": config.noise_density,
        "data.mean_noise_span_length": config.mean_noise_span_length,
        "data.seed": config.seed,
        SHARDS: shards[0] if len(shards) == 1 else shards,
        VOCABULARY: fingerprint,
        "version of this program's examples": EXAMPLES_VERSION,
    }
    if config.mixture:
        identity["names and weights of data.mixture"] = [[item.name, float(item.weight)] for item in config.mixture]
    return identity


def describe_text(config: DataConfig, sources: Sequence[ShardSource] | Sequence[TaskExamples]) -> dict[str, list[str]]:
    """Return, for each source, what tells its text from other text: the keys that select rows, and its shards in order.

    Files may have moved: their names and sizes count, not their folders.
    """
    text = {source.name: source.identify() for source in sources if isinstance(source, TaskExamples)}
    shards = [source for source in sources if not isinstance(source, TaskExamples)]
    for configured, source in zip(config.train_sources() if shards else (), shards, strict=True):
        keys = configured.keys
        selected = [f"text_column = {keys.text_column}"]
        if keys.source == "hub":
            selected += [f"{keys.hub_dataset} {keys.hub_config} {configured.split} at {keys.hub_revision}"]
        text[configured.name] = selected + [source.identify(shard) for shard in range(source.num_shards)]
    return text


def resume_place(config: DataConfig, saved: dict[str, Any], current: dict[str, Any]) -> Literal["same", "beginning"]:
    """Return where a run with ``config`` continues in its text: where the saved state is, or from the start.

    Args:
        config: the ``data`` section.
        saved: ``identity`` and, unless an older version wrote it, ``text`` of the state.
        current: the same of this run.

    Raises:
        ValueError: the state is of other data settings or text, and ``data.on_other_text`` does not accept that.
    """
    before, now = saved["identity"], current["identity"]
    key = next((key for key in now | before if before.get(key) != now.get(key)), None)
    text = _first_other(saved.get("text"), current["text"])
    if key is None and text is None:
        return "same"
    settings = f"{key} = {now.get(key)!r}, but the checkpoint was made with {before.get(key)!r}"
    difference = text or ""
    if key is not None:
        difference = f"{settings}; {text}" if text and key == SHARDS else settings
    if config.on_other_text == "continue" and key is None:
        logger.warning("%s: going on at the same place (data.on_other_text)", difference, extra=NOTICE)
        return "same"
    if config.on_other_text == "begin" and key != VOCABULARY:
        logger.warning("%s: reading the text from its beginning (data.on_other_text)", difference, extra=NOTICE)
        return "beginning"
    fix = "restore it to resume, or start a new run"
    if key != VOCABULARY:
        fix += ", or set data.on_other_text=begin to read the present text from its beginning"
    if key is None:
        fix += ", or data.on_other_text=continue if the shards hold the same rows"
    raise ValueError(f"{difference}: {fix}")


def _first_other(saved: dict[str, list[str]] | None, current: dict[str, list[str]]) -> str | None:
    """What differs first between two descriptions of text; None if nothing does, or an older version saved none."""
    for name, now in current.items():
        before = (saved or {}).get(name)
        if before is None or before == now:
            continue
        pairs = itertools.zip_longest(before, now, fillvalue="nothing")
        a, b = next((a, b) for a, b in pairs if a != b)
        return f"the text of source {name!r} is other than the checkpoint's: {b} in place of {a}"
    return None
