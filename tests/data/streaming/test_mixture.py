"""Mixtures of sources: token shares, order, resume."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.streaming.loader import PretrainingLoader, merge_states
from data.streaming.mixture import MixtureStream
from data.tokenizer import Tokenizer
from tests.support.examples import raw_tokens

MakeConfig = Callable[..., DataConfig]
MakeTexts = Callable[..., list[str]]
WriteShards = Callable[..., str]


WEIGHTS = {"c4": 0.17, "web": 0.34, "wiki": 0.05, "talk": 0.23, "forum": 0.02, "books": 0.17, "news": 0.02}  # paper's


class FakeStream:
    """A stream of full examples; every ``every``-th one is the short last chunk of a pack."""

    def __init__(self, seed: int, every: int) -> None:
        self.tokens_given = self.examples_given = 0
        self._rng = np.random.default_rng(seed)
        self._every = every
        self.mean_length = 568.0

    def next_example(self) -> None:
        self.examples_given += 1
        self.tokens_given += int(self._rng.integers(1, 569)) if self.examples_given % self._every == 0 else 568
        self.mean_length = 568 - 284 / self._every  # known after the first pack


@pytest.mark.parametrize("num_streams", [1, 4, 55, 64])
@pytest.mark.parametrize("weights", [[*WEIGHTS.values()], [1, 1], [3, 1], [98, 1, 1]])
def test_token_shares_after_a_million_tokens(num_streams: int, weights: list[float]) -> None:
    """Within 1 % of all tokens, at any number of streams; the sources differ in their numbers of short examples."""
    fakes = [[FakeStream(100 * s + i, 3 + 7 * i) for i in range(len(weights))] for s in range(num_streams)]
    streams = [MixtureStream(s, own, weights) for s, own in enumerate(fakes)]  # type: ignore[arg-type]
    for n in range(1_000_000 // 568):
        streams[n % num_streams].next_example()
    total = sum(stream.tokens_given for own in fakes for stream in own)
    for i, weight in enumerate(weights):
        share = sum(own[i].tokens_given for own in fakes) / total
        assert abs(share - weight / sum(weights)) < 0.01, (i, share)


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), num_streams=st.integers(1, 100))
def test_shares_hold_from_the_first_examples(weights: list[float], num_streams: int) -> None:
    """After any number of examples up to 500 each source is within 12 examples of its share."""
    fakes = [[FakeStream(0, 10**9) for _ in weights] for _ in range(num_streams)]
    streams = [MixtureStream(s, own, weights) for s, own in enumerate(fakes)]  # type: ignore[arg-type]
    given_ = np.zeros(len(weights))
    for n in range(500):
        before = [stream.examples_given for stream in fakes[n % num_streams]]
        streams[n % num_streams].next_example()
        given_ += [stream.examples_given - b for stream, b in zip(fakes[n % num_streams], before, strict=True)]
        assert np.abs(given_ - (n + 1) * np.array(weights) / sum(weights)).max() < 12


@pytest.fixture(scope="module")
def mixed(
    tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, make_texts: MakeTexts, write_shards: WriteShards
) -> Callable[..., DataConfig]:
    """Three sources, each with its own words and document length."""
    folder = tmp_path_factory.mktemp("mixture")
    files = {}
    for number, (name, words) in enumerate({"long": 300, "short": 6, "middle": 40}.items()):
        shards = [
            [f"{name} " + text for text in make_texts(60, seed=1000 * number + shard, words=words)]
            for shard in range(4)
        ]
        files[name] = write_shards(folder / name, shards)

    def make(weights: dict[str, float] | None = None, **settings_: Any) -> DataConfig:
        chosen = weights or {"long": 5, "short": 1, "middle": 2}
        mixture = [{"name": name, "weight": weight, "files": files[name]} for name, weight in chosen.items()]
        return make_config(**({"mixture": mixture, "documents_per_pack": 8} | settings_))

    return make


def open_loader(config: DataConfig, tokenizer: Tokenizer, rank: int = 0, world_size: int = 1) -> PretrainingLoader:
    return PretrainingLoader(config, tokenizer, rank=rank, world_size=world_size, batch_size=8 // world_size)


def test_shares_and_metrics_of_real_sources(mixed: Callable[..., DataConfig], tokenizer: Tokenizer) -> None:
    loader = open_loader(mixed(), tokenizer)
    given_: Counter[str] = Counter()
    for _ in range(250):
        batch = loader.next_batch()
        given_["all"] += int((batch["input_ids"] > 1).sum() + (batch["labels"] > 1).sum())
    metrics = loader.metrics()
    tokens = {name: metrics[f"data_tokens_{name}"] for name in ("long", "short", "middle")}
    total = sum(tokens.values())
    assert total > 100_000
    # sentinels come on top of the raw tokens, once in the inputs and once in the targets
    assert total < given_["all"] < 1.2 * total
    for name, share in {"long": 5 / 8, "short": 1 / 8, "middle": 2 / 8}.items():
        assert tokens[name] / total == pytest.approx(share, abs=0.01)
    assert metrics["data_rows"] == metrics["data_documents"] > 0 and metrics["data_bad_rows"] == 0


def test_each_source_keeps_its_own_order(mixed: Callable[..., DataConfig], tokenizer: Tokenizer) -> None:
    """The examples of the first source in the mixture are those of the source on its own."""
    config = mixed()
    loader = open_loader(config, tokenizer)
    alone = open_loader(mixed({"long": 1.0}), tokenizer)
    texts: list[list[list[int]]] = [[], []]
    for which, each in enumerate((loader, alone)):
        for _ in range(20):
            batch = each.next_batch()
            for stream, (inputs, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
                if stream % 4 == 1:
                    texts[which].append(raw_tokens(inputs.tolist(), labels.tolist(), tokenizer))
    of_first = [text for text in texts[0] if text in texts[1]]
    assert of_first == texts[1][: len(of_first)] and len(of_first) > 15


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_at_another_world_size_is_exact(
    mixed: Callable[..., DataConfig], tokenizer: Tokenizer, num_workers: int
) -> None:
    config = mixed(shuffle_buffer=16)

    def step(loaders: list[PretrainingLoader]) -> list[Any]:
        batches = [loader.next_batch() for loader in loaders]
        return sorted(
            str(row) for b in batches for row in zip(b["input_ids"].tolist(), b["labels"].tolist(), strict=True)
        )

    whole = [open_loader(config, tokenizer)]
    expected = [step(whole) for _ in range(30)]
    state = open_loader(config, tokenizer).state_dict()
    seen = []
    served = mixed(shuffle_buffer=16, num_workers=num_workers)
    for world_size in (2, 1, 2):
        ranks = [open_loader(served, tokenizer, rank, world_size) for rank in range(world_size)]
        for loader in ranks:
            loader.load_state_dict(json.loads(json.dumps(state)))
        seen += [step(ranks) for _ in range(10)]
        state = merge_states([loader.state_dict() for loader in ranks])
        for loader in ranks:
            loader.close()
    assert seen == expected


def test_another_mixture_does_not_continue_a_run(mixed: Callable[..., DataConfig], tokenizer: Tokenizer) -> None:
    state = open_loader(mixed(), tokenizer).state_dict()
    for weights in ({"long": 5, "short": 1, "middle": 3}, {"short": 1, "long": 5, "middle": 2}):
        with pytest.raises(ValueError, match=r"names and weights of data\.mixture = .* restore it"):
            open_loader(mixed(weights), tokenizer).load_state_dict(state)
    with pytest.raises(ValueError, match="number of shards"):
        open_loader(mixed({"long": 1}), tokenizer).load_state_dict(state)


def test_a_source_with_too_few_shards_is_named(
    tmp_path: Path, mixed: Callable[..., DataConfig], tokenizer: Tokenizer
) -> None:
    config = mixed(num_streams=8)
    with pytest.raises(ValueError, match=r"num_streams = 8, but data\.mixture\[0\]\.files = .* has 4 shards"):
        open_loader(config, tokenizer)
