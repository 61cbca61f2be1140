"""What is said of a folder that is no run, or neither a run nor an export."""

from pathlib import Path

import pytest

from training.config.errors import ConfigError
from training.export.folders import check_run, check_source


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("runs/tiny/checkpoints/step_00000004", "runs/new/checkpoints", "exported/tiny", "other", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/tiny/checkpoints/step_00000004/manifest.json").write_text("{}")
    (tmp_path / "runs/begun").mkdir()
    (tmp_path / "runs/begun/config.yaml").touch()
    (tmp_path / "exported/tiny/config.json").write_text('{"model_type": "st_moe"}')
    (tmp_path / "other/config.json").write_text('{"model_type": "t5"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("runs/tinny", "runs/tinny: no such folder in HERE: did you mean runs/tiny?"),
        ("nowhere", "nowhere: no such folder in HERE: name a run folder, such as runs/tiny"),
        ("runs/begun/config.yaml", "runs/begun/config.yaml is a file, no folder: name a run folder"),
        ("runs/begun", "runs/begun holds no checkpoint: the run writes one every training.save_every steps"),
        ("runs/new", "runs/new holds no checkpoint: the run writes one every training.save_every steps"),
        ("runs", "runs holds runs and is none itself: name one, such as runs/tiny"),
        ("runs/tiny/checkpoints", "runs/tiny/checkpoints is part of a run: name the run, HERE/runs/tiny"),
        ("empty", "empty is no run, since it has no checkpoints/: name a run folder"),
    ],
)
def test_neither_a_run_nor_an_export(folder: str, words: str, places: Path):
    for check in (check_run, check_source):
        with pytest.raises(ConfigError) as refused:
            check(Path(folder))
        assert str(refused.value).startswith(words.replace("HERE", str(places)))


@pytest.mark.usefixtures("places")
def test_runs_and_exports_are_told_apart():
    check_run(Path("runs/tiny"))
    check_source(Path("runs/tiny"))
    check_source(Path("exported/tiny"))
    for folder, words in (
        ("exported/tiny", "is an export, which holds weights alone: name the run"),
        ("runs/tiny/checkpoints/step_00000004", "is one checkpoint of a run: name the run"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_run(Path(folder))
    with pytest.raises(ConfigError, match="holds a model of type t5, not st_moe"):
        check_source(Path("other"))
