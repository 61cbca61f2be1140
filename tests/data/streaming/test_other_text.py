"""A resumed run notices that its text is another one, wherever the files lie, and does what it is asked to."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.streaming.loader import PretrainingLoader, merge_states

MakeLoader = Callable[..., PretrainingLoader]


@pytest.fixture
def state(make_loader: MakeLoader) -> dict[str, Any]:
    """After three batches of two ranks."""
    ranks = [make_loader(rank=rank, world_size=2) for rank in range(2)]
    for loader in ranks:
        for _ in range(3):
            loader.next_batch()
    saved: dict[str, Any] = json.loads(json.dumps(merge_states([loader.state_dict() for loader in ranks])))
    return saved


def copied(train_files: str, folder: Path) -> Path:
    shutil.copytree(Path(train_files).parent, folder)
    return folder


def test_moved_files_are_the_same_text(
    make_loader: MakeLoader, state: dict[str, Any], train_files: str, tmp_path: Path
):
    there = copied(train_files, tmp_path / "elsewhere")
    here, moved = make_loader(), make_loader(train_files=f"{there}/*.json.gz")
    for loader in (here, moved):
        loader.load_state_dict(state)
    np.testing.assert_equal(moved.next_batch(), here.next_batch())
    del state["text"]  # as an older version saved it
    make_loader(train_files=f"{there}/*.json.gz").load_state_dict(state)


@pytest.mark.parametrize("change", ["longer", "renamed", "column"])
def test_other_text_is_refused_by_name_unless_it_is_accepted(
    change: str, make_loader: MakeLoader, state: dict[str, Any], train_files: str, tmp_path: Path
):
    folder = copied(train_files, tmp_path / "other")
    settings: dict[str, Any] = {"train_files": f"{folder}/*.json.gz"}
    file = folder / "part-00003.json.gz"
    if change == "longer":
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b'{"text": "one more."}\n'))
        words = rf"{file.name} of {file.stat().st_size:,} bytes in place of {file.name} of "
    elif change == "renamed":
        file.rename(folder / "part-00003-new.json.gz")
        words = "part-00003-new.json.gz of .* in place of part-00003.json.gz"
    else:
        settings["text_column"] = "title"
        words = "text_column = title in place of text_column = text"
    with pytest.raises(
        ValueError, match=rf"the text of source 'train' is other than the checkpoint's: {words}"
    ) as error:
        make_loader(**settings).load_state_dict(state)
    assert "data.on_other_text=begin" in str(error.value) and "data.on_other_text=continue" in str(error.value)
    kept = make_loader(**settings, on_other_text="continue")
    kept.load_state_dict(state)
    assert kept.state_dict()["next_example"] == state["next_example"] > 0
    if change == "column":
        return
    anew = make_loader(**settings, on_other_text="begin")
    anew.load_state_dict(state)
    fresh = make_loader(**settings)
    for _ in range(3):
        np.testing.assert_equal(anew.next_batch(), fresh.next_batch())
    again = make_loader(**settings, on_other_text="begin")  # the text is now the one that was saved
    again.load_state_dict(json.loads(json.dumps(anew.state_dict())))
    np.testing.assert_equal(again.next_batch(), anew.next_batch())


def test_other_settings_may_begin_anew_but_not_go_on(make_loader: MakeLoader, state: dict[str, Any], vocabulary: Path):
    for accepted in ("stop", "continue"):
        with pytest.raises(ValueError, match=r"data\.inputs_length = 32, but .* set data\.on_other_text=begin"):
            make_loader(inputs_length=32, on_other_text=accepted).load_state_dict(state)
    anew = make_loader(inputs_length=32, on_other_text="begin")
    anew.load_state_dict(state)
    np.testing.assert_equal(anew.next_batch(), make_loader(inputs_length=32).next_batch())
    state["identity"]["fingerprint of data.vocabulary"] = "another"
    with pytest.raises(ValueError, match=r"fingerprint of data\.vocabulary = .* or start a new run$"):
        make_loader(on_other_text="begin").load_state_dict(state)
