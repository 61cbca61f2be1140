"""Words and classes of tokens, worked by hand."""

import pytest

from studies.routing.words import CLASSES, class_of_word, label
from tests.support.traces import PIECES, drawn_trace, trace_of

ID = {piece: number for number, piece in PIECES.items()}


def ids(*pieces: str) -> list[int]:
    return [ID[piece] for piece in pieces]


def test_a_word_that_a_mask_has_cut_is_one_word_in_both_stacks():
    # "In the Lon|don. walk|ed the cats, and": what a mask has taken stands in the decoder, behind its sentinel.
    encoder = ids("▁In", "▁the", "▁Lon", "<extra_id_0>", ".", "▁walk", "<extra_id_1>", ",", "▁and", "</s>")
    decoder = ids("<pad>", "<extra_id_0>", "don", "<extra_id_1>", "ed", "▁the", "▁cat", "s")
    trace = trace_of([encoder], [decoder])
    words = label(trace)
    named = {
        stack: [(words.texts[word], CLASSES[kind]) for word, kind in zip(of.word_T, of.class_T, strict=True)]
        for stack, of in words.labels.items()
    }
    assert named["encoder"] == [
        ("in", "function word"), ("the", "function word"), ("london", "name"), ("<extra_id_0>", "sentinel"),
        (".", "punctuation"), ("walked", "verb"), ("<extra_id_1>", "sentinel"), (",", "punctuation"),
        ("and", "function word"), ("</s>", "special"),
    ]  # fmt: skip
    assert named["decoder"] == [
        ("<pad>", "special"), ("<extra_id_0>", "sentinel"), ("london", "name"), ("<extra_id_1>", "sentinel"),
        ("walked", "verb"), ("the", "function word"), ("cats", "other"), ("cats", "other"),
    ]  # fmt: skip
    assert words.labels["decoder"].starts_T.tolist() == [1, 1, 0, 1, 0, 1, 1, 0]


def test_a_prefix_goes_before_its_continuation():
    words = label(trace_of([ids("▁the", "▁Lon", "</s>")], [ids("<pad>", "don", "▁19", "45", "▁seven")]))
    texts = [words.texts[word] for word in words.labels["decoder"].word_T]
    assert texts == ["<pad>", "london", "1945", "1945", "seven"]
    kinds = [CLASSES[kind] for kind in words.labels["decoder"].class_T]
    assert kinds == ["special", "name", "number", "number", "number"]


def test_the_first_word_of_a_sentence_is_no_name():
    words = label(trace_of([ids("▁Lon", "don", "▁walk", ".", "▁Lon", "don", "▁Lon", "don")], [ids("<pad>")]))
    kinds = [CLASSES[kind] for kind in words.labels["encoder"].class_T]
    assert kinds == ["other", "other", "other", "punctuation", "other", "other", "name", "name"]


def test_what_an_apostrophe_has_contracted_is_a_function_word():
    words = label(trace_of([ids("▁the", "▁cat", "'", "s", "▁cat", "s", "▁", "s", "'")], [ids("<pad>")]))
    kinds = [CLASSES[kind] for kind in words.labels["encoder"].class_T]
    assert kinds[2:] == ["punctuation", "function word", "other", "other", "other", "other", "punctuation"]


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("I", "function word"), ("said", "verb"), ("Walking", "name"), ("walking", "verb"), ("morning", "other"),
        ("red", "other"), ("B52", "number"), ("million", "number"), ("NATO", "name"), ("organize", "verb"),
        ("king", "other"), ("s", "other"), ("", "other"), ("dans", "function word"), ("y", "other"),
    ],
)  # fmt: skip
def test_classes_inside_a_sentence(word: str, kind: str):
    assert CLASSES[class_of_word(word, begins_sentence=False)] == kind


def test_every_token_has_a_word_and_tokens_of_a_word_have_one_class():
    trace = drawn_trace(40)
    words = label(trace)
    for stack, tokens in trace.stacks.items():
        of = words.labels[stack]
        assert len(of.class_T) == len(of.word_T) == len(of.starts_T) == len(tokens.token_T)
        assert of.word_T.min() >= 0
        assert of.word_T.max() < len(words.texts)
        assert set(of.class_T.tolist()) <= set(range(len(CLASSES)))
