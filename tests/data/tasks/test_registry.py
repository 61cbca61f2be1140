"""Names, groups, rows of the Hub and of local files, and what is said where they are not to be had."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.sources.retry import DataError
from data.tasks import GROUPS, TASKS, Example, examples, expand, get
from data.tasks.sources import hub
from data.tasks.sources.hub import HubRows

PAPER = (
    "boolq cb copa multirc record rte wic wsc arc_easy arc_challenge winogrande anli_r1 anli_r2 anli_r3 xsum "
    "cnn_dailymail squad natural_questions web_questions trivia_qa"
)


def test_the_tasks_of_the_paper_and_the_offline_ones_are_there() -> None:
    assert set(f"{PAPER} sst2 wiki_topic hypernym synopsis".split()) <= TASKS.keys()
    assert [get(name).name for name in TASKS] == list(TASKS)
    assert GROUPS["superglue"] == ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
    assert not GROUPS.keys() & TASKS.keys()
    assert all(member in TASKS for members in GROUPS.values() for member in members)
    assert expand(["superglue", "xsum", "boolq"]) == [*GROUPS["superglue"], "xsum"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bool_q", "there is no task 'bool_q': did you mean boolq?"),
        ("ARC-Easy", "there is no task 'ARC-Easy': did you mean arc_easy"),
        ("zzz", "there is no task 'zzz': use one of boolq, cb, "),
        ("anli", "anli is a group of tasks: anli_r1, anli_r2, anli_r3: name one of them"),
    ],
)
def test_a_task_that_does_not_exist(name: str, words: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(words)}") as caught:
        get(name)
    assert "\n" not in str(caught.value)
    if name != "anli":
        with pytest.raises(DataError, match=re.escape(words)):
            expand(["boolq", name])


def test_rows_of_the_hub_are_pinned() -> None:
    sources = [task.source for task in TASKS.values() if isinstance(task.source, HubRows)]
    assert len(sources) > 30
    for source in sources:
        assert re.fullmatch("[0-9a-f]{40}", source.revision) and "/" in source.dataset and source.license


class Datasets:
    """In place of ``datasets``: records what is asked for."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load_dataset(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append((arguments, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"premise": "P", "hypothesis": "H", "label": 1, "uid": "u", "reason": ""}]
    datasets = Datasets(rows)
    monkeypatch.setattr(hub, "import_datasets", lambda: datasets)
    assert list(examples("anli_r3", "validation", tmp_path)) == [
        Example("anli hypothesis: H premise: P", "neutral", rows[0], "anli_r3")
    ]
    revision = "8e4813d81f46d313dac7892e1c28076917cfcdf9"
    assert datasets.asked == [(("facebook/anli", None), {"split": "dev_r3", "revision": revision})]
    datasets.answer = ConnectionError("no\nroute")
    with pytest.raises(
        DataError, match=r"^task xsum: EdinburghNLP/xsum .* cannot be had from the .*no route"
    ) as caught:
        get("xsum").load("test", tmp_path)
    assert str(tmp_path / "xsum" / "test.jsonl") in str(caught.value) and "\n" not in str(caught.value)


def write(file: Path, *lines: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_a_local_file_comes_before_the_hub(tmp_path: Path) -> None:
    rows = [{"question": "q", "passage": "p", "label": label} for label in (0, 1)]
    write(tmp_path / "boolq/train.jsonl", *rows)
    assert get("boolq").load("train", tmp_path) == rows
    assert [example.targets for example in examples("boolq", "train", tmp_path)] == ["False", "True"]


def test_evaluation_asks_each_row_once_and_training_each_answer(tmp_path: Path) -> None:
    record = {"passage": "p", "query": "q", "entities": [], "answers": ["a", "b"], "idx": {"passage": 0, "query": 0}}
    wsc = {"text": "Tom saw he slept", "span1_text": "Ann", "span2_text": "he", "span2_index": 2, "label": 0}
    for split in ("train", "validation"):
        write(tmp_path / f"record/{split}.jsonl", record)
        write(tmp_path / f"wsc/{split}.jsonl", wsc)
    assert [example.targets for example in examples("record", "train", tmp_path)] == ["a", "b"]
    assert [example.targets for example in examples("record", "validation", tmp_path)] == ["a"]
    assert list(examples("wsc", "train", tmp_path)) == []
    asked = list(examples("wsc", "validation", tmp_path))
    assert get("wsc").metrics(["Tom"], [example.row for example in asked]) == {"accuracy": 100.0}


@pytest.mark.parametrize(
    ("name", "split", "lines", "words"),
    [
        ("boolq", "dev", [], "task boolq has no split 'dev': use train, validation, test"),
        ("web_questions", "test", [], "task web_questions has no split 'test': use train, validation"),
        (
            "boolq",
            "train",
            [{"question": "q", "label": 0}],
            "task boolq: a row has no column 'passage', but question, label",
        ),
        ("boolq", "train", ["{]\n"], "line 1 is not valid JSON"),
        ("boolq", "train", [{"question": "q", "passage": "p", "label": 0}, "[1]\n"], "line 2 is no JSON object"),
        ("boolq", "train", [""], "task boolq: its split 'train' has no rows"),
        ("sst2", "train", [], "sst2/train.jsonl is missing: run python -m data.tasks sst2 --out "),
    ],
)
def test_rows_that_are_not_to_be_had(name: str, split: str, lines: list[Any], words: str, tmp_path: Path) -> None:
    if lines:
        write(tmp_path / name / f"{split}.jsonl", *lines)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        examples(name, split, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("boolq", {"question": "q", "passage": None, "label": 0}, "the column 'passage' of a row is null"),
        ("boolq", {"question": "q", "passage": "p", "label": 2}, "the label 2: give it one of 0 (False), 1 (True)"),
        ("boolq", {"question": "q", "passage": "p", "label": -2}, "a row has the label -2"),
        ("cb", {"hypothesis": "q", "premise": "p", "label": "neutral"}, "a row has the label 'neutral'"),
        ("squad", {"question": "q", "context": "c", "answers": ["a"]}, "a row is not as rajpurkar/squad (default)"),
        ("winogrande", {"sentence": "_", "option1": "a", "option2": "b", "answer": "3"}, "answer '3': give it one"),
        ("arc_easy", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "the answer 'B'"),
        ("wmt14_ende", {"translation": {"fr": "a", "en": "b"}}, "KeyError: 'de'"),
    ],
)  # fmt: skip
def test_rows_with_other_values_than_the_source_has(name: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"^task {name}: .*{re.escape(words)}") as caught:
        get(name).examples([row])
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq/train.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        get("boolq").load("train", tmp_path)
