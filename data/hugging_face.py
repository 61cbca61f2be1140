"""A SentencePiece vocabulary as the ``T5Tokenizer`` of transformers: whether it reads text alike, and its export.

``T5Tokenizer`` takes pieces and scores from any vocabulary, and nothing else: it is always a Unigram model without byte
fallback, splits at white space and puts "▁" before every word. A vocabulary of another kind would be exported without
an error, and the exported tokenizer would give other ids than the model was trained with. So both are compared on a
probe text, here without transformers, and after an export with the exported files.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

MODEL_FILE = "spiece.model"
# SentencePiece's kinds of pieces and models.
CONTROL, USER_DEFINED = 3, 4
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SPECIAL_PIECES = 3  # pad, eos, unk: written out in a text, transformers reads them as the special tokens
# Of a large vocabulary so many pieces are probed, evenly spread.
PROBED_PIECES = 2000
PIECES_PER_TEXT = 20
NEVER_FIT = {"model_type = bpe", "model_type = word", "byte_fallback = true"}
# Without U+0085: T5Tokenizer splits there, SentencePiece does not, under the normalization of T5 (nmt_nfkc) too.
PROBE = (
    'The quick brown fox jumps over the lazy dog, doesn\'t it? "Yes!" (said she) -- 1,234.5 % of $99.00; e.g. a/b.',
    "  leading and trailing blanks  ",
    "two  blanks,   three,\ttab,\t\ttwo tabs, line\nend, \r\nWindows\r\n\n empty lines\x0bvertical\x0cform feed",
    "no-break\u00a0blank, em\u2003blank, ideographic\u3000blank, thin\u2009blank, lines\u2028and\u2029paragraphs",
    "zero\u200bwidth, joiner\u200djoins, \ufeffmark, soft\u00adhyphen, turned \u202eabc\u202c, nul \x00, bell \x07",
    "full-width \uff21\uff22\uff23\u3000\uff11\uff12\uff13\uff01, ligature ﬁne ﬀ, ½ ² ① №5 ™ ǅ, half-width ｶﾞ",
    "accents áéíóúñçßøæåÄÖÜ, decomposed a\u0301e\u0301n\u0303 and alone \u0301, Ελληνικά, Русский, עברית, العربية",
    "中文没有空格\uff0c日本語もありません。한국어 \u1112\u1161\u11ab, ไทย, हिन्दी",
    "emoji 😀 👍🏽 👨‍👩‍👧 🇳🇴, math \U0001d49c\U0001d7d9, private \ue000, replacement \ufffd, last \U0010ffff",
    "UPPER lower MiXeD snake_case camelCase ALLCAPS aaaaaaaaaa !!!??? ...... ,,;;",
    "a▁b ▁ c ▁▁ d▁",
    "<s> <mask> <n> <sep> [CLS] <0x41> &lt;b&gt; {x} \\n #1 @you https://example.org/a?b=c&d=e",
    "def f(x):\n    return x + 1  # comment\n",
    "",
    " ",
    " \n ",
)


class Encoder(Protocol):
    """What a probe asks of a tokenizer of transformers or of ``tokenizers``."""

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text, without EOS."""
        ...

    def decode_plain(self, ids: list[int]) -> str:
        """Return the text of ids."""
        ...


class _Backend:
    """A ``tokenizers.Tokenizer``."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode_plain(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))


class _Exported:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode_plain(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def describe_unfit(content: bytes) -> str | None:
    """Say how ``T5Tokenizer`` would read this vocabulary otherwise than SentencePiece.

    Args:
        content: of ``spiece.model``.

    Returns:
        One line without an end: what differs, with an example; None if both agree on the probe text.
    """
    model = _parse(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    difference = find_difference(processor, model, _Backend(_like_t5(model)))
    reasons = _unfit_settings(model)
    if difference is None:
        # No text of the probe shows it, but such a model cannot be expected to agree on others.
        return ", ".join(reasons) if set(reasons) & NEVER_FIT else None
    return f"{', '.join(reasons)}: {difference}" if reasons else difference


def find_difference(processor: Any, model: Any, other: Encoder) -> str | None:
    """Compare encodings and decodings of the probe text.

    Args:
        processor: the SentencePiece processor.
        model: its parsed file.
        other: to compare with.

    Returns:
        The first difference, as one line; None if there is none. Texts with unknown pieces are only encoded: these two
        show an unknown piece differently.
    """
    for text in probe_texts(model):
        expected, found = processor.encode(text), other.encode_plain(text)
        if expected != found:
            return (
                f"{_shorten(text)} becomes {_name(model, found, expected)} instead of {_name(model, expected, found)}"
            )
        if processor.unk_id() in expected:
            continue
        wanted, decoded = processor.decode(expected), other.decode_plain(expected)
        if wanted != decoded:
            return f"the ids of {_shorten(wanted)} are decoded to {_shorten(decoded)}"
    return None


def probe_texts(model: Any) -> Iterator[str]:
    """Yield the texts to compare: ``PROBE``, and the pieces of the model alone, joined, and beside other text."""
    yield from PROBE
    pieces = [(p.piece, p.type) for p in model.pieces][SPECIAL_PIECES:]
    for piece, kind in pieces:
        if kind in (CONTROL, USER_DEFINED):
            yield from (piece, f"a{piece}B", f"One {piece} two", f"{piece}{piece} Three{piece}", f"four {piece}five")
    plain = [piece for piece, kind in pieces if kind not in (CONTROL, USER_DEFINED)]
    over_words = [piece for piece in plain if "▁" in piece[1:]]
    plain = over_words[:PROBED_PIECES] + plain[:: -(-len(plain) // PROBED_PIECES) or 1]
    for start in range(0, len(plain), PIECES_PER_TEXT):
        some = [piece.replace("▁", " ") for piece in plain[start : start + PIECES_PER_TEXT]]
        yield "".join(some)
        yield " ".join(piece.strip() for piece in some)


def save(content: bytes, folder: Path, num_sentinels: int, longest: int | None = None) -> None:
    """Write a vocabulary as a ``T5Tokenizer`` and check that it reads as SentencePiece does.

    Args:
        content: of ``spiece.model``.
        folder: created if missing; receives ``spiece.model``, ``tokenizer.json`` and ``tokenizer_config.json``, which
            ``AutoTokenizer.from_pretrained`` and ``T5Tokenizer.from_pretrained`` load.
        num_sentinels: ids above the pieces, descending: <extra_id_0> is the last.
        longest: ``model_max_length``; None: no limit.

    Raises:
        ValueError: the written tokenizer gives other ids or another text than SentencePiece; nothing else is wrong with
            the vocabulary.
    """
    from transformers import T5Tokenizer

    model = _parse(content)
    folder.mkdir(parents=True, exist_ok=True)
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(num_sentinels))]
    charsmap = model.normalizer_spec.precompiled_charsmap
    tokenizer = T5Tokenizer(
        vocab=[*_scores(model), *sentinels],
        _spm_precompiled_charsmap=charsmap or None,
        extra_ids=num_sentinels,
        eos_token=model.pieces[1].piece,
        pad_token=model.pieces[0].piece,
        unk_token=model.pieces[2].piece,
        clean_up_tokenization_spaces=False,
        **({} if longest is None else {"model_max_length": longest}),
    )
    tokenizer.save_pretrained(str(folder))
    (folder / MODEL_FILE).write_bytes(content)

    # What others will read, not the object in memory: transformers builds it anew from the files.
    # The probe texts may be longer than the limit, of which transformers would warn.
    exported = T5Tokenizer.from_pretrained(str(folder), model_max_length=sys.maxsize)
    last = len(model.pieces) + num_sentinels - 1
    first = exported.convert_tokens_to_ids("<extra_id_0>")
    if (len(exported), first) != (last + 1, last):
        raise ValueError(
            f"transformers reads the tokenizer in {folder} as {len(exported)} tokens with <extra_id_0> = {first}, "
            f"expected {last + 1} and {last}: use the version of transformers in requirements.txt"
        )
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    difference = find_difference(processor, model, _Exported(exported))
    if difference is not None:
        raise ValueError(
            f"transformers reads the tokenizer in {folder} otherwise than it was trained with ({difference}): use the "
            "version of transformers in requirements.txt"
        )


def _parse(content: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    return model


def _scores(model: Any) -> list[tuple[str, float]]:
    """Return pieces with scores.

    SentencePiece prefers a user-defined symbol to any other reading of the same characters, by a score of its own
    (``unigram_model.cc``: bytes x the highest score - 0.1); in its file the score of these symbols is 0.
    """
    highest = max((p.score for p in model.pieces if p.type == 1), default=0.0)
    return [
        (p.piece, len(p.piece.encode()) * highest - 0.1 if p.type == USER_DEFINED else p.score) for p in model.pieces
    ]


def _like_t5(model: Any) -> Any:
    """Return the ``tokenizers.Tokenizer`` that ``T5Tokenizer`` makes of a vocabulary; transformers takes seconds to
    import."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(_scores(model), unk_id=2, byte_fallback=False))
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    special = [AddedToken(p.piece, special=True, normalized=False) for p in model.pieces[:SPECIAL_PIECES]]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _unfit_settings(model: Any) -> list[str]:
    """Return the settings of SentencePiece's trainer that ``T5Tokenizer`` does not have, as option = value."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    settings: Sequence[tuple[str, Any, bool]] = (
        ("model_type", MODEL_TYPES.get(trainer.model_type, trainer.model_type), trainer.model_type in (1, 4)),
        ("byte_fallback", "true", not trainer.byte_fallback),
        ("add_dummy_prefix", "false", normalizer.add_dummy_prefix),
        ("remove_extra_whitespaces", "false", normalizer.remove_extra_whitespaces),
        ("escape_whitespaces", "false", normalizer.escape_whitespaces),
        ("treat_whitespace_as_suffix", "true", not trainer.treat_whitespace_as_suffix),
        ("split_by_whitespace", "false", trainer.split_by_whitespace),
        ("normalization_rule_name", normalizer.name, normalizer.name.startswith("nmt_nfkc")),
    )
    return [f"{option} = {value}" for option, value, fits in settings if not fits]


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _name(model: Any, ids: list[int], other: list[int]) -> list[str]:
    """Return the pieces around the first place where two readings differ."""
    same = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    return [model.pieces[i].piece if i < len(model.pieces) else str(i) for i in ids[max(0, same - 1) : same + 3]]
