"""Vocabularies as T5Tokenizer reads them: refused where it would read otherwise, exported where it agrees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from data.hugging_face import _like_t5, _parse, describe_unfit, probe_texts
from data.tokenizer import Tokenizer
from tests.support.vocabularies import write_vocabulary

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "bpe": ({"model_type": "bpe"}, "model_type = bpe"),
    "word": ({"model_type": "word"}, "model_type = word"),
    "byte fallback": ({"vocab_size": 400, "byte_fallback": True}, "byte_fallback = true"),
    "no prefix": ({"add_dummy_prefix": False}, "add_dummy_prefix = false"),
    "blanks kept": ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces = false"),
    "blanks behind": ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix = true"),
    "no normalization": ({"normalization_rule_name": "identity"}, "normalization_rule_name = identity"),
    "tabs kept": ({"normalization_rule_name": "nfkc"}, "normalization_rule_name = nfkc"),
    "pieces over words": ({"split_by_whitespace": False}, "split_by_whitespace = false"),
    "control symbol": ({"control_symbols": ["<mask>"]}, "<mask>"),
}
FIT: dict[str, dict[str, Any]] = {
    "unigram": {},
    "characters": {"model_type": "char"},
    "lower case": {"normalization_rule_name": "nmt_nfkc_cf"},
    "user symbols": {"user_defined_symbols": ["<n>", "<sep>", "😀", "x"]},
    "symbol with a blank": {"user_defined_symbols": ["new line"]},
    "cased symbol": {"user_defined_symbols": ["[INST]"]},
}
OTHER_TEXTS = [
    "Banan baner<n>Dis <sep> cen",
    "\u00dcn\u00efcode: \u03a9mega \U0001f600 \u4f60\u597d",
    "two  spaces\tand tab",
    " leading",
    "ba\u0301n \ufb01ve \u21165",
    "1,234.5 (x)",
    "line\nbreak \u2028 end\r\n",
    "[INST]do[INST] this, new line, anew lines",
    "xx x axxa",
]


@pytest.mark.parametrize("kind", UNFIT)
def test_a_vocabulary_that_would_be_read_otherwise_is_refused(
    tmp_path: Path, make_texts: Callable[..., list[str]], kind: str
) -> None:
    settings, words = UNFIT[kind]
    folder = write_vocabulary(tmp_path / "v", [*make_texts(200), *["in as well as of"] * 200], **settings)
    with pytest.raises(ValueError, match="would be read otherwise by the exported tokenizer") as caught:
        Tokenizer(folder, setting="--vocabulary")
    assert str(caught.value).startswith(f"--vocabulary = {str(folder)!r}") and words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FIT)
def test_an_exported_vocabulary_reads_and_writes_as_sentencepiece(
    tmp_path: Path, make_texts: Callable[..., list[str]], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, T5Tokenizer

    tokenizer = Tokenizer(write_vocabulary(tmp_path / "v", make_texts(200), **FIT[kind]))
    tokenizer.save_hugging_face_tokenizer(tmp_path / "export")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v/spiece.model"))
    model = _parse((tmp_path / "v/spiece.model").read_bytes())
    backend = _like_t5(model)
    for load in (AutoTokenizer, T5Tokenizer):
        exported = load.from_pretrained(str(tmp_path / "export"))
        assert type(exported) is T5Tokenizer and len(exported) == tokenizer.vocab_size
        assert exported.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [
            tokenizer.first_sentinel_id,
            tokenizer.num_pieces,
        ]
        for text in [*probe_texts(model), *OTHER_TEXTS, *make_texts(20, seed=3)]:
            ids = processor.encode(text)
            assert exported(text).input_ids == [*ids, tokenizer.eos_id], text
            assert backend.encode(text, add_special_tokens=False).ids == ids, text
            if tokenizer.unk_id not in ids:
                assert exported.decode(ids) == processor.decode(ids) == backend.decode(ids)
    assert "warn" not in capfd.readouterr().err.lower()


def test_an_export_that_transformers_reads_otherwise_is_an_error(
    tmp_path: Path, make_texts: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5Tokenizer

    tokenizer = Tokenizer(write_vocabulary(tmp_path / "v", make_texts(200)))
    load = T5Tokenizer.from_pretrained

    def other(folder: str, **options: Any) -> Any:
        found = load(folder, **options)
        found.backend_tokenizer.normalizer = None
        return found

    monkeypatch.setattr(T5Tokenizer, "from_pretrained", other)
    with pytest.raises(ValueError, match=r"otherwise than it was trained with .* becomes"):
        tokenizer.save_hugging_face_tokenizer(tmp_path / "export")


def test_a_model_that_says_bpe_is_refused_even_if_no_probe_differs(
    tmp_path: Path, make_texts: Callable[..., list[str]]
) -> None:
    model = _parse((write_vocabulary(tmp_path, make_texts(100), model_type="char") / "spiece.model").read_bytes())
    assert describe_unfit(model.SerializeToString()) is None
    model.trainer_spec.model_type = 2  # without pieces to merge, BPE reads as "char" does
    assert describe_unfit(model.SerializeToString()) == "model_type = bpe"
