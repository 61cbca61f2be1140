"""fill.py, on a run and on an export."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fill
from common.exit_codes import USER_ERROR
from common.project import ROOT
from tests.support.launch import python
from training.export.export import export

SENTENCES = ("kada <extra_id_0> mipo <extra_id_1> lone", "lone <extra_id_0>")


def test_a_run_and_its_export_fill_the_same(trained: Path, tmp_path: Path):
    export(trained, tmp_path / "exported", torch.float32)
    result = python("fill.py", str(trained), *SENTENCES, "--max-new-tokens", "40")
    assert result.returncode == 0, result.stderr[-3000:]
    assert python("fill.py", str(tmp_path / "exported"), *SENTENCES, "--max-new-tokens", "40").stdout == result.stdout
    lines = result.stdout.splitlines()
    spans = [line.split("  ", 2)[2] for line in lines if line.startswith("  <extra_id_")]
    for line in (line for line in lines if not line.startswith("  ")):
        assert line.startswith(("kada ", "lone "))
    assert spans and all(spans)
    # An untrained model may not come to the last span: then it says so, and leaves the sentinel.
    assert ("<extra_id_1>" in lines[0]) == ("spans within --max-new-tokens 40" in result.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "no sentinel"], "sentence 1 has no sentinel"),
        (["RUN", *SENTENCES, "a <extra_id_1>"], "sentence 3 has the sentinels <extra_id_1>"),
        (["NONE", "a <extra_id_0>"], "no such folder"),
        (["OTHER", "a <extra_id_0>"], "holds a model of type t5"),
        (["EMPTY", "a <extra_id_0>"], "holds no checkpoint"),
        (["CUT", "a <extra_id_0>"], "cannot be loaded"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    for name in ("OTHER", "EMPTY/checkpoints", "CUT"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "OTHER" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "CUT" / "config.json").write_text('{"model_type": "st_moe"}')
    folder = trained if arguments[0] == "RUN" else tmp_path / arguments[0]
    monkeypatch.setattr("sys.argv", ["fill.py", str(folder), *arguments[1:]])
    with pytest.raises(SystemExit) as stopped:
        fill.main()
    assert stopped.value.code == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error
    assert error.count("\n") == 1


def test_lines_of_stdin_are_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def read(content: bytes) -> list[tuple[str, str]]:
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open() as file:
            monkeypatch.setattr("sys.stdin", file)
            return fill.read_sentences([])

    text = "\ufeffé <extra_id_0>\r\n\nb <extra_id_0>"
    assert read(text.encode()) == [("line 1", "é <extra_id_0>"), ("line 3", "b <extra_id_0>")]
    with pytest.raises(ValueError, match="no sentence"):
        read(b" \n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read(b"\xff\xfe")
    monkeypatch.setattr("sys.stdin", None)  # closed by the user
    with pytest.raises(ValueError, match="no sentence"):
        fill.read_sentences([])


@pytest.mark.parametrize(
    "arguments",
    [
        ["fill.py", "nowhere", "a <extra_id_0>"],
        ["convert.py", "export", "configs", "--output", "x"],
        ["convert.py", "reshard", "configs", "--expert-parallel-size=1", "--world-size=1", "--zero-stage=1"],
    ],
)
def test_a_folder_that_is_no_run_is_refused_at_once(arguments: list[str]):
    """Imports of torch take seconds on a good day."""
    module = arguments[0].removesuffix(".py")
    code = f"import sys, {module}\ntry: {module}.main()\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, *arguments[1:]], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (USER_ERROR, "False\n"), result.stderr


def test_a_moved_run_without_its_vocabulary_is_told_where_to_find_it(trained: Path, tmp_path: Path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    kept = tmp_path / "kept"
    (moved / "vocabulary").rename(kept)
    result = python("fill.py", str(moved), SENTENCES[1], "--vocabulary", str(kept), "--max-new-tokens", "3")
    assert result.returncode == 0, result.stderr
