"""Which text a rank reads: its logical streams, and of each source the shards that are dealt to them. Without torch."""

import glob
from dataclasses import dataclass
from pathlib import Path

from data.config import TextSource
from data.hugging_face import MODEL_FILE
from data.sources.open import open_shards
from data.sources.patterns import expand_braces
from data.sources.remote import is_remote
from data.streaming.corpus import Corpus
from data.streaming.schedule import Schedule, check_shards
from data.tokenizer import Tokenizer
from training.config.run import RunConfig
from training.run.process import Process


@dataclass(frozen=True)
class Text:
    """What a rank reads."""

    streams: list[int]  # in the order in which examples are taken from them
    shards: dict[str, list[str]]  # source → names of its shards in the first stream and epoch, in order
    counts: dict[str, int]  # source → shards of all of the rank's streams
    unread: list[str]  # what was not looked at, and why


def text_of(config: RunConfig, process: Process) -> Text:
    """Return what a rank reads; opens what lies on this machine.

    Raises:
        ValueError: a vocabulary that does not fit the model, or fewer shards than streams.
    """
    data, size = config.data, config.training.micro_batch_size
    streams = list(Schedule(process.rank, process.world_size, size, data.num_streams).own_streams())
    shards: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    unread = []
    if (Path(data.vocabulary) / MODEL_FILE).is_file():
        Tokenizer(data.vocabulary).check_fits(config.architecture().vocab_size)
    else:
        unread.append(f"data.vocabulary = {data.vocabulary} has no {MODEL_FILE} here")
    if data.objective == "tasks":
        return Text(streams, shards, counts, [*unread, "the tasks"])
    for number, source in enumerate(data.train_sources()):
        why = _elsewhere(source)
        if why is not None:
            unread.append(why)
            continue
        opened = open_shards(data, source)
        check_shards(data, process.world_size, [opened])
        corpus = Corpus(opened, data.num_streams, data.seed, number=number)
        shards[source.name] = [opened.identify(shard) for shard in corpus.shard_order(streams[0], 0)]
        counts[source.name] = sum(len(range(stream, opened.num_shards, data.num_streams)) for stream in streams)
    return Text(streams, shards, counts, unread)


def _elsewhere(source: TextSource) -> str | None:
    """Say why the shards of a source cannot be listed here; None if they can."""
    if source.keys.source == "hub":
        return f"{source.name}: {source.keys.hub_dataset} of the Hub is not listed, which needs the network"
    patterns = [source.files] if isinstance(source.files, str) else source.files
    if any(map(is_remote, patterns)):
        return f"{source.name}: {source.setting} = {source.files!r} is not listed, which needs the network"
    if not any(Path(one).exists() or glob.glob(one) for pattern in patterns for one in expand_braces(pattern)):
        return f"{source.name}: {source.setting} = {source.files!r} is not on this machine"
    return None
