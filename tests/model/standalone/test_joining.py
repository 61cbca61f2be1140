"""One file made of the modules of a package computes what they compute."""

from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from model.st_moe import StMoeForConditionalGeneration
from model.standalone.joining import join
from model.standalone.save import AUTO_MAP, MODELING_FILE, modeling_code
from tests.model.test_hugging_face_contract import batch, make_model


def joined(folder: Path, modules: dict[str, str]) -> dict:
    """What ``pack.top`` joined with the modules that it imports defines, and its text."""
    (folder / "pack" / "below").mkdir(parents=True)
    for file, source in modules.items():
        (folder / "pack" / file).write_text(source, encoding="utf-8")
    text = join(folder, "pack.top", ["main"], replaced={}, header='"""Joined."""\n')
    values: dict = {"__name__": "joined"}
    exec(compile(text, "joined", "exec"), values)
    return values | {"text": text}


def test_the_file_computes_the_same_to_the_bit_and_travels_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loading it in a process that knows nothing of this project is tested with the exported model."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    model, inputs = make_model(), batch()
    model.save_pretrained(tmp_path / "saved")
    # AutoModelForSeq2SeqLM would take the class of this project.
    reference = AUTO_MAP["AutoModelForSeq2SeqLM"]
    made = dynamic_module_utils.get_class_from_dynamic_module(reference, str(tmp_path / "saved"))
    assert made is not StMoeForConditionalGeneration
    loaded = made.from_pretrained(tmp_path / "saved")
    for one in (model, loaded):
        one.train()
        one(**inputs).loss.backward()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    for (name, mine), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name
    loaded.save_pretrained(tmp_path / "again")
    for file in (MODELING_FILE, "config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes(), file
    again = StMoeForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_the_file_is_readable_and_without_what_only_training_needs():
    text = modeling_code()
    assert text == modeling_code()
    assert "# ---------- model/moe/router.py ---" in text
    assert "initialize_weights" not in text and "import deepspeed" not in text
    assert not [line for line in text.splitlines() if line.startswith(("from model", "import model"))]
    assert len(text.splitlines()) < 3000


TOP = '''"""Top."""
from pack.below.one import SIZE as size, _help, shadowed
from .below.two import SIZE, Twice, _help as other_help


def main(size_of=None):
    """A parameter has the name of another module's global."""
    ONE = [SIZE for _ in range(2)]
    return size, SIZE, _help(), other_help(), shadowed(5), Twice().both(), ONE
'''
ONE = """# a comment that stays
SIZE = 1  # of one


def _help():
    return f"one {SIZE}"


def shadowed(SIZE):
    inner = lambda _help: (SIZE, _help)
    from os import path as _
    return inner(7), [SIZE for SIZE in (8, 9)]


def unused():
    return _help()
"""
TWO = '''"""Two."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pack.below.one import shadowed

SIZE = 2


def _help() -> str:
    from pack.below.one import SIZE as local_size
    return f"two {SIZE} → {local_size}"


class Twice:
    SIZE = 3

    def both(self) -> "tuple[int, int]":
        return SIZE, self.SIZE


if __name__ == "__main__":
    raise SystemExit
'''


def test_names_that_clash_are_told_apart(tmp_path: Path):
    values = joined(tmp_path, {"top.py": TOP, "below/one.py": ONE, "below/two.py": TWO})
    assert values["main"]() == (1, 2, "one 1", "two 2 → 1", ((5, 7), [8, 9]), (2, 3), [2, 2])
    text = values["text"]
    assert "def unused" not in text and "from pack" not in text
    assert "# of one" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from pack import below", "pack/top.py:1: import names of pack, not modules"),
        ("import pack.below", "pack/top.py:1: import names of a module"),
        ("print(1)", "pack/top.py:1: only definitions"),
        ("from pack.below.one import nothing", "pack/below/one.py does not define nothing"),
        ("from pack.top import nothing", "pack.top imports itself"),
    ],
)
def test_what_cannot_be_joined_is_refused(line: str, words: str, tmp_path: Path):
    top = f"{line}\ndef main():\n    return nothing\n"
    with pytest.raises(ValueError, match=words):
        joined(tmp_path, {"top.py": top, "below/one.py": ""})
