"""What is asked, how it is shared, what answers are worth and how that is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

import data.tasks
from data.tasks.baselines import majority
from tests.support.tasks import write_rows
from training.config.errors import ConfigError
from training.tasks.batches import padded, turns
from training.tasks.paper import PAPER
from training.tasks.questions import CROSS_ENTROPY, Question, ask, decode, encode, task_names
from training.tasks.scores import means, result_of
from training.tasks.tables import markdown, text


class Letters:
    """A vocabulary of letters."""

    eos_id, pad_id, first_sentinel_id = 1, 0, 999

    def encode_batch(self, texts: list[str]) -> list[Any]:
        import numpy as np

        return [np.array([ord(letter) for letter in text], np.int32) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"sentence": f"text {n}", "label": int(n % 3 == 0)} for n in range(8)]
    write_rows(tmp_path, "sst2", {"train": rows, "validation": rows[:5], "test": [rows[0] | {"label": -1}]})
    return tmp_path


def test_every_question_is_asked_once_and_all_ranks_make_the_same_calls():
    lengths = [3, 9, 4, 4, 1, 7, 2, 8, 5, 6, 3]
    for world_size, size in ((1, 4), (2, 2), (3, 1), (4, 8)):
        of_ranks = [turns(lengths, size, rank, world_size) for rank in range(world_size)]
        assert sorted(n for shared in of_ranks for turn in shared for n in turn.own) == list(range(11))
        for same in zip(*of_ranks, strict=True):
            assert len({(turn.rows, tuple(turn.everyone)) for turn in same}) == 1
            assert all(len(turn.own) <= turn.rows <= size for turn in same)
        longest = [max(lengths[n] for n in turn.everyone) for turn in of_ranks[0]]
        assert longest == sorted(longest, reverse=True)
    assert padded([[5, 6]], 2, 3, filler=1, pad=0) == [[5, 6, 0], [1, 0, 0]]


def test_texts_become_ids_as_in_fine_tuning(folder: Path):
    asked = ask("sst2", "validation", 2, folder)
    assert not asked.is_complete and ask("sst2", "validation", 5, folder).is_complete
    assert [example.inputs for example in asked.examples] == ["sst2 sentence: text 0", "sst2 sentence: text 1"]
    tokenizer: Any = Letters()
    ids = [ord(letter) for letter in "sst2 sentence: text 0"]
    negative, positive = ([*map(ord, word), 1] for word in ("negative", "positive"))
    assert encode(asked, tokenizer, 64, sentinels=False)[0] == Question([*ids, 1], [negative, positive], False)
    assert encode(asked, tokenizer, 10, sentinels=False)[0] == Question([*ids[:9], 1], [negative, positive], True)
    marked = encode(asked, tokenizer, 10, sentinels=True)[0]
    assert marked == Question([*ids[:8], 999, 1], [[999, *negative], [999, *positive]], True)
    assert decode([999, 65, 66, 1, 67], tokenizer, sentinels=True) == "AB"
    assert decode([65, 66], tokenizer, sentinels=True) == "AB"


def test_names_are_tasks_groups_and_commas():
    assert task_names(["anli,xsum", "anli_r1", " sst2 ,validation"]) == [
        "anli_r1", "anli_r2", "anli_r3", "xsum", "sst2", CROSS_ENTROPY,
    ]  # fmt: skip
    for given, words in (
        ("boolqq", "did you mean boolq"), ("supergleu", "did you mean superglue"), (",", "names no task"),
        ("validaton", "did you mean validation"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            task_names([given])


def test_rows_without_an_answer_are_refused_before_a_model_is_built(folder: Path):
    with pytest.raises(ValueError, match="1 of 1 row have no reference to compare with"):
        ask("sst2", "test", None, folder)
    with pytest.raises(ValueError, match="has no split 'tets': use train, validation"):
        ask("sst2", "tets", None, folder)
    with pytest.raises(ValueError, match="is missing: run python"):
        ask("hypernym", "validation", None, folder)


def test_a_result_stands_beside_baselines_and_the_paper(folder: Path):
    asked = ask("sst2", "validation", None, folder)
    answers = ["positive", "negative", "what?", "positive", "positive"]  # labels 1 0 0 1 0: three are right
    choices = ["positive", "negative", "negative", "positive", "positive"]
    result = result_of(asked, answers, choices, 1, folder)
    assert (result.generated, result.likeliest, result.score) == ({"accuracy": 60.0}, {"accuracy": 80.0}, 60.0)
    assert result.baselines == {}  # the task was not prepared
    described = {"archives": [], "rows": {"train": 8, "validation": 5}, "baselines_split": "validation"}
    stored = described | {"baselines": {"majority": {"accuracy": 12.5}}}
    (folder / "sst2" / "task.json").write_text(json.dumps(stored))
    assert result_of(asked, answers, None, 0, folder).baselines == {"majority": {"accuracy": 12.5}}
    some = ask("sst2", "validation", 4, folder)  # of other rows than those of task.json
    rows = some.task.load("train", folder)
    expected = some.task.metrics(
        majority(lambda row: ["negative", "positive"][row["label"]])(rows, some.rows), some.rows
    )
    assert result_of(some, answers[:4], None, 0, folder).baselines["majority"] == expected == {"accuracy": 50.0}

    words = text([result]).splitlines()
    assert words[0].split() == ["task", "split", "rows", "metric", "generated", "likeliest"]
    assert words[1].split() == ["sst2", "validation", "5", "accuracy", "60.0", "80.0"]
    assert markdown([result]).splitlines()[2] == "| sst2 | validation | 5 | accuracy | 60.0 | 80.0 |"


def test_the_mean_of_a_group_needs_all_its_tasks(folder: Path):
    rows: dict[str, list[dict[str, Any]]] = {
        "boolq": [{"passage": "p", "question": "q", "label": 1}],
        "cb": [{"hypothesis": "h", "premise": "p", "label": 0}],
        "copa": [{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0}],
        "multirc": [{"idx": {"paragraph": 0, "question": 0, "answer": 0}, "question": "q", "answer": "a",
                     "paragraph": "p", "label": 1}],
        "record": [{"query": "q", "entities": ["e"], "passage": "p", "answers": ["e"],
                    "idx": {"passage": 0, "query": 0}}],
        "rte": [{"hypothesis": "h", "premise": "p", "label": 0}],
        "wic": [{"sentence1": "a", "sentence2": "b", "word": "w", "label": 0}],
        "wsc": [{"text": "Ann saw her .", "span1_text": "Ann", "span1_index": 0, "span2_text": "her", "span2_index": 2,
                 "label": 1}],
    }  # fmt: skip
    results = []
    for name, of_task in rows.items():
        write_rows(folder, name, {"validation": of_task})
        asked = ask(name, "validation", None, folder)
        right = name != "rte"
        results.append(result_of(asked, [asked.examples[0].targets if right else "no"], None, 0, folder))
    (mean,) = means(results)
    # CB's F1 is a mean over three classes, of which one is there: 66.7; RTE's answer is wrong; all others are right.
    assert (mean.name, mean.generated, mean.examples) == ("superglue", {"mean": pytest.approx((600 + 200 / 3) / 8)}, 8)
    assert mean.paper == {"mean": {"Dense-L": 85.1, "ST-MoE-L": 87.4, "ST-MoE-32B": 93.2}}
    assert text([*results, mean]).splitlines()[-3].split()[-4:] == ["83.3", "85.1", "87.4", "93.2"]
    assert [mean.name for mean in means(results[:2])] == ["2 tasks"]
    assert means(results[:1]) == []


def test_the_figures_of_the_paper_are_of_tasks_and_metrics_that_exist():
    for name, metric in PAPER:
        if name in data.tasks.GROUPS:
            assert metric == "mean"
            continue
        task = data.tasks.get(name)
        known = {"accuracy", "em", "f1", "rouge2"}
        assert metric in known and (not task.headline or metric in task.headline)
