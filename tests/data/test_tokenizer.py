"""The vocabulary: ids, sentinels, errors, and its Hugging Face export."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data.tokenizer import Tokenizer, train_vocabulary
from tests.support.vocabularies import write_vocabulary


def test_ids_of_t5(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.num_sentinels) == (0, 1, 2, 100)
    assert tokenizer.num_pieces == 300
    assert tokenizer.vocab_size == 400
    assert tokenizer.first_sentinel_id == 399


def test_training_is_deterministic_and_leaves_one_file(tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    for name in ("a", "b"):
        train_vocabulary(make_texts(200), 150, tmp_path / name)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["spiece.model"]
    assert (tmp_path / "a/spiece.model").read_bytes() == (tmp_path / "b/spiece.model").read_bytes()
    assert Tokenizer(tmp_path / "a").fingerprint == Tokenizer(tmp_path / "b").fingerprint


def test_training_uses_documents_longer_than_a_sentence(tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    train_vocabulary([" ".join(make_texts(2000)), "ж" * 50 + "\n" + "z"], 150, tmp_path)
    decoded = Tokenizer(tmp_path)
    text = make_texts(1, seed=3)[0]
    assert decoded.decode(decoded.encode_batch([text])[0]) == text


def test_impossible_vocabulary_size_is_one_line(tmp_path: Path) -> None:
    texts = [f"{text} {text}" for text in ["a small text", "another text"] * 20]
    for size, what in ((5000, "these texts support at most"), (10, "the characters of these texts need at least")):
        with pytest.raises(ValueError, match=f"^--vocab-size = {size}: {what} [0-9]+ pieces: set ") as caught:
            train_vocabulary(texts, size, tmp_path)
        assert "\n" not in str(caught.value) and "INTERNAL" not in str(caught.value)
        assert not list(tmp_path.iterdir())
        advised = int(str(caught.value).partition("set --vocab-size ")[2].split()[0].rstrip(","))
        train_vocabulary(texts, advised, tmp_path / str(size))
        assert Tokenizer(tmp_path / str(size)).num_pieces == advised
        (tmp_path / str(size) / "spiece.model").unlink()
        (tmp_path / str(size)).rmdir()


def test_encode_has_no_eos_and_decodes_back(tokenizer: Tokenizer, make_texts: Callable[..., list[str]]) -> None:
    texts = make_texts(20, seed=5)
    encoded = tokenizer.encode_batch(texts)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / "spiece.model"))
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([]) == []


def test_a_sentinel_written_in_a_text_gives_no_sentinel(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(["a <extra_id_0> b"])[0].max() < tokenizer.num_pieces


def test_decode_renders_sentinels_and_drops_padding(tokenizer: Tokenizer) -> None:
    (word,) = tokenizer.encode_batch(["abc"])
    ids = [399, *word.tolist(), 300, 1, 0, 0, -100]
    assert tokenizer.decode(ids) == "<extra_id_0> abc <extra_id_99>"
    assert tokenizer.decode(np.array([399, 398])) == "<extra_id_0> <extra_id_1>"
    assert "\u2047" in tokenizer.decode([400])


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.vocabulary = .*has no spiece\.model: run `bash"):
        Tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x00" * 100])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        Tokenizer(tmp_path)


def test_other_special_ids(tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    folder = write_vocabulary(tmp_path, make_texts(100), pad_id=-1, eos_id=2, unk_id=0, bos_id=1)
    with pytest.raises(ValueError, match=r"pad, eos, unk ids \(-1, 2, 0\), not \(0, 1, 2\)"):
        Tokenizer(folder)


def test_sentinels_among_the_pieces(tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    folder = write_vocabulary(tmp_path, make_texts(100), user_defined_symbols=["<extra_id_1>", "<extra_id_0>"])
    with pytest.raises(ValueError, match="has 2 <extra_id_"):
        Tokenizer(folder)


@pytest.mark.parametrize("declared", [0, 10, None])
def test_folder_that_declares_other_sentinels(
    tmp_path: Path, declared: int | None, make_texts: Callable[..., list[str]]
) -> None:
    folder = write_vocabulary(tmp_path, make_texts(100))
    Tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": declared}))
    with pytest.raises(ValueError, match=f"declares extra_ids = {declared}"):
        Tokenizer(folder)


def test_model_vocabulary_must_hold_every_id(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(400)
    tokenizer.check_fits(512)
    with pytest.raises(ValueError, match=r"model\.vocab_size = 399 .*set model\.vocab_size=512"):
        tokenizer.check_fits(399)


def test_hugging_face_export(tokenizer: Tokenizer, tmp_path: Path, make_texts: Callable[..., list[str]]) -> None:
    from transformers import T5Tokenizer

    tokenizer.save_hugging_face_tokenizer(tmp_path / "export")
    exported = T5Tokenizer.from_pretrained(str(tmp_path / "export"))
    assert len(exported) == tokenizer.vocab_size
    assert exported.convert_tokens_to_ids("<extra_id_0>") == tokenizer.first_sentinel_id
    assert exported.convert_tokens_to_ids("<extra_id_99>") == tokenizer.num_pieces
    assert (exported.pad_token_id, exported.eos_token_id, exported.unk_token_id) == (0, 1, 2)
    texts = [*make_texts(30, seed=9), "Unknown: ÄÖ 漢", "  two  spaces\tand\nlines "]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert exported(text).input_ids == [*ids.tolist(), 1]
    assert Tokenizer(tmp_path / "export").fingerprint == tokenizer.fingerprint
