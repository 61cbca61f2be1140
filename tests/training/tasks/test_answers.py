"""The same answers of a run and its export, at any batch size, with and without the cache, on one rank and two."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from tests.support.launch import python
from training.export.export import export
from training.export.fill import load
from training.export.trained import find_trained
from training.tasks.answers import Answerer, Decoding
from training.tasks.lengths import lengths_of
from training.tasks.questions import Question, ask, encode

TASKS = ("synopsis", "wiki_topic")
WAYS = ((1, True), (10, False), (4, False), (10, True))  # batch size, cache


def questions_of(name: str, limit: int, trained: Path, folder: Path) -> list[Question]:
    return encode(ask(name, "validation", limit, folder), load(trained).tokenizer, 32, sentinels=False)


def test_generation_depends_on_nothing_but_the_inputs(trained: Path, exported: Path, task_folder: Path):
    """Batches of 1 and of all, with the cache and without, from the run and from the export; greedy and 4 beams."""
    questions = questions_of("synopsis", 10, trained, task_folder)
    models = [load(trained), load(exported)]
    for beams in (1, 4):
        found = []
        for (model, tokenizer), (size, cache) in zip(models * 2, WAYS, strict=True):
            decoding = Decoding(max_length=8, beams=beams, batch_size=size, use_cache=cache)
            found.append(Answerer(model, tokenizer, decoding).generate(questions))
        assert sorted(found[0]) == list(range(10))
        assert found[1:] == found[:1] * 3
        assert len(set(found[0].values())) > 5  # the model does not say the same of everything


def test_log_probabilities_are_those_of_the_tokens_one_after_another(trained: Path, task_folder: Path):
    """Against a forward pass per prefix, without batch, padding or labels; choices of unequal number and length."""
    model, tokenizer = load(trained)
    for name, limit in (("sst2", 2), ("arc_easy", 3)):
        questions = questions_of(name, limit, trained, task_folder)
        found = Answerer(model, tokenizer, Decoding(max_length=8, batch_size=4)).log_probabilities(questions)
        for number, question in enumerate(questions):
            assert len(found[number]) == len(question.choices)
            for choice, total in zip(question.choices, found[number], strict=True):
                expected = 0.0
                for end, token in enumerate(choice):
                    prefix = torch.tensor([[0, *choice[:end]]])
                    with torch.no_grad():
                        logits = model(input_ids=torch.tensor([question.inputs]), decoder_input_ids=prefix).logits
                    expected += float(logits[0, -1].double().log_softmax(-1)[token])
                assert total == pytest.approx(expected, abs=1e-4)
    counts = {len(question.choices) for question in questions}
    assert len(counts) > 1


def test_lengths_are_those_of_training(trained: Path, exported: Path):
    of_run, of_export = (
        lengths_of(find_trained(folder), None, None, sentinels=False) for folder in (trained, exported)
    )
    assert of_run == of_export
    assert of_run.inputs == 32


def test_an_export_is_silent(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its check of the tokenizer reads texts that are longer than the limit."""
    export(trained, tmp_path / "exported", torch.float32)
    assert caplog.records == []


def evaluate(model: Path, folder: Path, out: Path, *options: str, ranks: int = 1) -> dict[str, list[str]]:
    """Return the lines of the predictions of ``TASKS``."""
    common = ("--task-folder", str(folder), "--out", str(out), "--max-length", "8")
    done = python("evaluate.py", str(model), "--tasks", ",".join(TASKS), *common, *options, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert done.stdout.count("synopsis") >= 1
    return {name: (out / f"{name}.jsonl").read_text().splitlines() for name in TASKS}


@pytest.mark.distributed
def test_two_ranks_that_share_the_experts_answer_alike(
    trained: Path, exported: Path, task_folder: Path, tmp_path: Path
):
    """Thirteen rows: in the last turn one rank has fewer than the other; each ends its sentences at its own step."""
    one = evaluate(trained, task_folder, tmp_path / "one", "--limit", "13", "--batch-size", "2")
    two = evaluate(exported, task_folder, tmp_path / "two", "--limit", "13", "--batch-size", "3", ranks=2)
    for name in TASKS:
        for left, right in zip(map(json.loads, one[name]), map(json.loads, two[name]), strict=True):
            assert left.pop("scores", []) == pytest.approx(right.pop("scores", []), abs=1e-4)
            assert left == right
    assert len({json.loads(line)["prediction"] for line in one["synopsis"]}) > 5
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["ranks"] == 2
    assert results["results"]["wiki_topic"]["generated"].keys() == {"accuracy"}


@pytest.mark.long
@pytest.mark.distributed
def test_the_same_text_in_every_way(trained: Path, exported: Path, task_folder: Path, tmp_path: Path):
    """64 inputs: greedy and 4 beams, 1 and 2 ranks, batches of 1 and 32, with and without cache, run and export."""
    for beams in ("1", "4"):
        found = []
        ways = itertools.product((1, 2), ("1", "32"), ((), ("--no-cache",)), (trained, exported))
        for number, (ranks, size, cache, model) in enumerate(ways):
            options = ("--beams", beams, "--batch-size", size, *cache)
            lines = evaluate(model, task_folder, tmp_path / f"{beams}-{number}", *options, ranks=ranks)
            found.append([json.loads(line)["prediction"] for line in lines["synopsis"]])
        assert len(found) == 16 and len(found[0]) == 64
        assert found[1:] == found[:1] * 15
        assert len(set(found[0])) > 32
