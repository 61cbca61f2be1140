"""Mixtures of text-to-text tasks: what an example is, the order, resume, held-out examples, mistakes."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig
from data.objectives.base import IGNORED_LABEL
from data.objectives.text_to_text import TextToText
from data.sources.retry import DataError
from data.streaming.loader import PretrainingLoader, merge_states
from data.streaming.task_validation import task_validation_batches
from data.streaming.validation import DOMAIN
from data.tokenizer import Tokenizer

SIZES = {"small": 6, "middle": 20, "large": 70}
MakeTasks = Callable[..., DataConfig]


@pytest.fixture
def make_tasks(tmp_path: Path, vocabulary: Path) -> MakeTasks:
    """Three own tasks, whose inputs name task and row."""
    files = []
    for name, size in SIZES.items():
        for split, count in (("train", size), ("validation", size // 2)):
            rows = [{"inputs": f"{name} {split} {i}", "targets": str(i)} for i in range(count)]
            (tmp_path / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append({"name": name, "train_files": str(tmp_path / f"{name}.train.jsonl"),
                      "validation_files": str(tmp_path / f"{name}.validation.jsonl")})  # fmt: skip

    def make(**settings: Any) -> DataConfig:
        values: dict[str, Any] = {
            "objective": "tasks", "task_files": files, "vocabulary": str(vocabulary), "inputs_length": 32,
            "targets_length": 8, "num_streams": 8, "num_workers": 0,
        }  # fmt: skip
        return DataConfig(**values | settings)

    return make


def loader_of(config: DataConfig, tokenizer: Tokenizer, rank: int = 0, world: int = 1, batch: int = 4) -> Any:
    return PretrainingLoader(config, tokenizer, rank=rank, world_size=world, batch_size=batch)


def texts(batch: dict[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in batch["input_ids"]]


def test_an_example_is_inputs_eos_and_targets_eos(make_tasks: MakeTasks, tokenizer: Tokenizer):
    eos, pad, sentinel = tokenizer.eos_id, tokenizer.pad_id, tokenizer.first_sentinel_id
    a, b = (list(ids) for ids in tokenizer.encode_batch(["one two", "three"]))
    plain = TextToText(make_tasks(), tokenizer).encode("one two", "three")
    assert plain.inputs_L.tolist() == [*a, eos] + [pad] * (31 - len(a))
    assert plain.labels_T.tolist() == ([*b, eos] + [IGNORED_LABEL] * 8)[:8]
    marked = TextToText(make_tasks(sentinels=True, targets_length=32), tokenizer).encode("one two", "three")
    assert marked.inputs_L[: len(a) + 3].tolist() == [*a, sentinel, eos, pad]
    assert marked.labels_T[: len(b) + 3].tolist() == [sentinel, *b, eos, IGNORED_LABEL]
    assert not (plain.cut_inputs or marked.cut_inputs or marked.cut_targets)


@pytest.mark.parametrize("sentinels", [False, True])
def test_a_long_text_is_cut_and_still_ends_with_eos(make_tasks: MakeTasks, tokenizer: Tokenizer, sentinels: bool):
    config = make_tasks(sentinels=sentinels)
    long = "one two three four " * 20
    (ids,) = tokenizer.encode_batch([long])
    example = TextToText(config, tokenizer).encode(long, long)
    extra = [tokenizer.first_sentinel_id] * sentinels
    assert example.inputs_L.tolist() == [*ids[: 31 - sentinels], *extra, tokenizer.eos_id]
    assert example.labels_T.tolist() == [*extra, *ids[: 7 - sentinels], tokenizer.eos_id]
    assert example.cut_inputs
    assert example.cut_targets


def test_every_task_gives_each_example_once_an_epoch_in_its_share(make_tasks: MakeTasks, tokenizer: Tokenizer):
    loader = loader_of(make_tasks(mixing_cap=40), tokenizer)
    given = [text for _ in range(330) for text in texts(loader.next_batch(), tokenizer)]
    tasks = Counter(text.split()[0] for text in given)
    weights = {"small": 6, "middle": 20, "large": 40}
    for name, weight in weights.items():
        assert abs(tasks[name] - len(given) * weight / 66) <= 6, tasks
        mine = [text for text in given if text.startswith(name)]
        epochs = [mine[i : i + SIZES[name]] for i in range(0, len(mine) - SIZES[name] + 1, SIZES[name])]
        assert len(epochs) > 3
        assert all(len(set(epoch)) == SIZES[name] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs[:3]}) == 3  # another order in each
    first = [text.split()[0] for text in given[:66]]
    assert all(abs(first.count(name) - weight) <= 3 for name, weight in weights.items())
    metrics = loader.metrics()
    assert metrics["data_rows"] == len(given)
    assert metrics["data_cut_inputs"] == metrics["data_bad_rows"] == 0
    assert metrics["data_tokens_large"] > metrics["data_tokens_small"] > 0


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_has_the_same_examples_at_any_world_size_and_number_of_workers(
    make_tasks: MakeTasks, tokenizer: Tokenizer, world: int
):
    alone = loader_of(make_tasks(), tokenizer, batch=8)
    ranks = [
        loader_of(make_tasks(num_workers=int(rank == 0)), tokenizer, rank, world, 8 // world) for rank in range(world)
    ]
    for _ in range(6):
        batches = [rank.next_batch() for rank in ranks]
        together = list(itertools.chain(*zip(*(texts(batch, tokenizer) for batch in batches), strict=True)))
        assert together == texts(alone.next_batch(), tokenizer)
    state = merge_states([rank.state_dict() for rank in ranks])
    resumed = loader_of(make_tasks(num_workers=1), tokenizer, batch=8)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    for _ in range(5):
        a, b = resumed.next_batch(), alone.next_batch()
        assert all((a[key] == b[key]).all() for key in a)
    for loader in (resumed, *ranks):
        loader.close()
    assert resumed.metrics() == alone.metrics()


def test_a_resumed_run_refuses_other_tasks(make_tasks: MakeTasks, tokenizer: Tokenizer, tmp_path: Path):
    loader = loader_of(make_tasks(), tokenizer)
    loader.next_batch()
    state = loader.state_dict()
    for settings, words in (
        ({"sentinels": True}, "data.sentinels = True, but the checkpoint was made with False"),
        ({"mixing_temperature": 2.0}, "names and shares of data.tasks"),
    ):
        with pytest.raises(ValueError, match=words):
            loader_of(make_tasks(**settings), tokenizer).load_state_dict(state)
    file = tmp_path / "small.train.jsonl"
    file.write_text(file.read_text().replace("small train 3", "small train three"))
    with pytest.raises(ValueError, match="the text of source 'small' is other than the checkpoint"):
        loader_of(make_tasks(), tokenizer).load_state_dict(state)


@pytest.mark.parametrize("world", [1, 2])
def test_all_held_out_examples_are_in_batches_that_name_their_task(
    make_tasks: MakeTasks, tokenizer: Tokenizer, world: int
):
    found: dict[str, list[str]] = {name: [] for name in SIZES}
    numbers = set()
    for rank in range(world):
        batches, names = task_validation_batches(
            make_tasks(), tokenizer, rank=rank, world_size=world, batch_size=4 // world, limit=12
        )
        assert names == list(SIZES)
        numbers.add(len(batches))
        for batch in batches:
            assert batch["input_ids"].shape == (4 // world, 32)
            real = (batch["input_ids"] != tokenizer.pad_id).any(1)
            assert ((batch["labels"] != IGNORED_LABEL).any(1) == real).all()  # padding alone has no target
            for text, is_real, domain in zip(texts(batch, tokenizer), real, batch[DOMAIN], strict=True):
                if is_real:
                    found[names[domain]].append(text)
    assert len(numbers) == 1
    assert sorted(found["small"]) == [f"small validation {i}" for i in range(3)]
    assert sorted(found["middle"]) == sorted(f"middle validation {i}" for i in range(10))
    assert len(set(found["large"])) == 12  # of 35, drawn by the seed


def test_mistakes_are_one_line(
    make_tasks: MakeTasks, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # its library would retry for half a minute
    rows = [json.dumps({"inputs": "a", "label": "b"}), "{", json.dumps({"inputs": "c", "targets": "d"})]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    (tmp_path / "none.jsonl").write_text(json.dumps({"question": "a", "targets": "b"}) + "\n")

    def own(file: str, **keys: str) -> dict[str, Any]:
        return {"task_files": [{"name": "own", "train_files": str(tmp_path / file), **keys}]}

    for settings, words in (
        ({"tasks": ["bolq"]}, r"data.tasks = \[bolq\]: there is no task 'bolq': did you mean boolq"),
        ({"tasks": ["boolq"], "task_folder": str(tmp_path)}, r"data.tasks = boolq: "),
        (own("none.jsonl"), r"own.train_files|0 of 1 rows are examples .*set data.task_files\[0\].inputs_column"),
        (own("nowhere.jsonl"), r"data.task_files\[0\].train_files = .* matches no file"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            loader_of(make_tasks(**settings), tokenizer)
        assert "\n" not in str(error.value)
    # The bad rows of one file are skipped, and counted once however many streams there are.
    loader = loader_of(make_tasks(**own("bad.jsonl")), tokenizer)
    assert texts(loader.next_batch(), tokenizer) == ["c"] * 4
    assert loader.bad_rows == {"malformed_json": 1, "missing_text": 1}
    with pytest.raises(DataError, match=r"data.task_files\[0\] = own has no validation_files"):
        task_validation_batches(make_tasks(**own("bad.jsonl")), tokenizer, rank=0, world_size=1, batch_size=2, limit=4)
    for settings, words in (
        ({"objective": "tasks"}, "data.objective = tasks without tasks"),
        ({"tasks": ["sst2"]}, "data.tasks is not used with data.objective = span_corruption"),
    ):
        with pytest.raises(ValueError, match=words):
            DataConfig(**settings)
