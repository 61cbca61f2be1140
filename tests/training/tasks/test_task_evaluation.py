"""evaluate.py: the cross-entropy of held-out text, and the mistakes of users."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evaluate
from common.exit_codes import USER_ERROR
from common.project import ROOT
from tests.support.launch import python, rows
from training.run.process import Process


def test_the_cross_entropy_of_held_out_text_is_that_of_the_run(trained: Path, tmp_path: Path):
    """With its routing, on as many ranks; and every token served, another number."""
    out = tmp_path / "out"
    options = ("--tasks", "validation", "--out", str(out), "--routing", "trained")
    done = python("evaluate.py", str(trained), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [row["cross_entropy"] for row in rows(trained) if row["split"] == "validation"][-1]
    found = json.loads((out / "results.json").read_text())
    assert found["held_out"]["cross_entropy"] == pytest.approx(expected, abs=1e-6)
    assert (found["step"], found["capacity"], found["results"]) == (4, "factor", {})
    assert f"cross_entropy: {expected:.4f} nats" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--tasks", "sst3"], "there is no task 'sst3': did you mean sst2"),
        (["RUN", "--tasks", "sst2", "--split", "dev"], "has no split 'dev'"),
        (["RUN", "--tasks", "hypernym"], "run python -m data.tasks hypernym"),
        (["RUN", "--tasks", "synopsis", "--answers", "likeliest"], "task synopsis has no choices"),
        (["RUN", "--tasks", "sst2", "--max-length", "1"], "--max-length 1 has no room"),
        (["RUN", "--tasks", "sst2", "--inputs-length", "2", "--sentinels"], "--inputs-length 2 has no room"),
        (["RUN", "--tasks", "sst2", "--checkpoint", "7"], "has no checkpoint of step 7: name one of 4"),
        (["RUN", "--tasks", "sst2", "--out", "FILE/out"], "--out"),
        (["EXPORT", "--tasks", "validation"], "which does not say how text becomes examples: name the run"),
        (["EXPORT", "--tasks", "sst2", "--routing", "trained"], "routes as it was exported"),
        (["NONE", "--tasks", "sst2"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    trained: Path,
    exported: Path,
    task_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "FILE").touch()
    places = {"RUN": trained, "EXPORT": exported, "NONE": tmp_path / "none", "FILE/out": tmp_path / "FILE" / "out"}
    given = [str(places.get(word, word)) for word in arguments]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *given, "--task-folder", str(task_folder)])
    with pytest.raises(ValueError, match=re.escape(words)) as found:
        evaluate.evaluate(evaluate.parse_arguments(), Process(0, 0, 1, 1))
    assert "\n" not in str(found.value)


def test_mistakes_are_said_before_torch_is_imported(trained: Path):
    code = (
        "import os, sys, evaluate\nimport training.run.distributed as d\n"
        "def leave(code): print('torch' in sys.modules, code)\n"
        "d.leave = leave\nevaluate.main()"
    )
    command = [sys.executable, "-c", code, str(trained), "--tasks", "supergleu"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"False {USER_ERROR}\n", result.stderr
    assert result.stderr.startswith("error: --tasks supergleu: there is no task")
    assert result.stderr.count("\n") == 1


def test_options_are_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def refused(*options: str) -> Any:
        monkeypatch.setattr("sys.argv", ["evaluate.py", "runs/tiny", *options])
        with pytest.raises(SystemExit) as stopped:
            evaluate.parse_arguments()
        assert stopped.value.code == USER_ERROR
        return capsys.readouterr().err

    assert "--tasks" in refused()
    assert "must be at least 1" in refused("--tasks", "sst2", "--beams", "0")
    assert "did you mean --length-penalty" in refused("--tasks", "sst2", "--length-penality", "1")
