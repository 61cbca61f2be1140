"""Words of tokens, and their classes: by rules and closed lists, since no tagger is at hand.

A text that was corrupted is put together again, so that a word which a mask has cut is one word in both stacks: the
decoder's tokens after a sentinel stand where the encoder has it. The rules, the first that holds:

1. *sentinel*: <extra_id_k>. *special*: start, end, unknown piece.
2. *punctuation*: a piece without letter or digit. It also ends a word, so that ``well-known`` are two.
3. All other pieces belong to a word, which begins with a space; every piece has its word's class.
   *number*: has a digit, or is a number word.
   *function word*: is in the list of English, French and Spanish ones, which lacks nouns of English (``son``, ``car``)
   and single letters (``y``), or is the end of a contraction (``s`` behind an apostrophe).
   *name*: begins with a capital and not a sentence; so ``American`` and ``NATO`` count, and the first word of a
   sentence never does.
   *verb*: is in the list of frequent English ones, or has at least five letters and ends in -ed, -ing, -ize or -ise,
   and is not in the list of exceptions; participles that serve as adjectives or nouns count, and present forms that are
   nouns too (``work``) do not, nor do the verbs of other languages.
   *other*: the rest. The lists are in ``closed_lists.json``.

A sentence begins at the first word of an example and after ``.``, ``!`` and ``?``; so it does after ``Dr.``
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from studies.routing.trace import Array, Trace

CLASSES = ("sentinel", "special", "punctuation", "number", "function word", "name", "verb", "other")
SENTINEL, SPECIAL, PUNCTUATION, NUMBER, FUNCTION, NAME, VERB, OTHER = range(len(CLASSES))
SPACE = "▁"  # SentencePiece's
ENDS = (".", "!", "?")
APOSTROPHES = ("'", "\N{RIGHT SINGLE QUOTATION MARK}")
# May stand between the end of a sentence and the next.
SURROUNDS = frozenset('"`()[]{}“”\N{LEFT SINGLE QUOTATION MARK}«»*_').union(APOSTROPHES)


def _listed(*lists: list[str]) -> frozenset[str]:
    return frozenset(" ".join(line for lines in lists for line in lines).split())


LISTS = json.loads(Path(__file__).with_name("closed_lists.json").read_text(encoding="utf-8"))
FUNCTION_WORDS = _listed(*LISTS["function words"].values())
CONTRACTED = _listed(LISTS["contracted"])  # behind an apostrophe
NUMBERS, VERBS, NO_VERBS = (_listed(LISTS[key]) for key in ("numbers", "verbs", "no verbs"))
VERB_ENDINGS = ("ed", "ing", "ize", "ise", "izes", "ises")
LEAST_LETTERS = 5


@dataclass(frozen=True)
class Labels:
    """What the tokens of a stack are."""

    class_T: Array  # int64, index in CLASSES
    word_T: Array  # int64, index in ``Words.texts``
    starts_T: Array  # int64, 1 for a piece that begins a word, 0 for one within


@dataclass(frozen=True)
class Words:
    """The words of a trace: their texts, in small letters, and the labels of each stack's tokens."""

    texts: list[str]
    labels: dict[str, Labels]


class _Piece(NamedTuple):
    text: str  # without the space that it begins with
    starts: bool
    kind: int  # SENTINEL, SPECIAL, PUNCTUATION, or OTHER for a part of a word


def class_of_word(word: str, *, begins_sentence: bool) -> int:
    """Return the class of a whole word, see the rules 3 above."""
    small = word.lower()
    if any(character.isdigit() for character in word) or small in NUMBERS:
        return NUMBER
    if small in FUNCTION_WORDS:
        return FUNCTION
    if word[:1].isupper() and not begins_sentence:
        return NAME
    regular = len(small) >= LEAST_LETTERS and small.endswith(VERB_ENDINGS) and small not in NO_VERBS
    return VERB if regular or small in VERBS else OTHER


def label(trace: Trace) -> Words:
    """Return word and class of every token of a trace."""
    encoder, decoder = trace.stacks["encoder"], trace.stacks["decoder"]
    pieces = {number: _read(piece) for number, piece in trace.pieces.items()}
    ids = [*encoder.token_T.tolist(), *decoder.token_T.tolist()]
    of_token = [pieces[number] for number in ids]
    classes, words = [OTHER] * len(ids), [-1] * len(ids)
    known: dict[str, int] = {}
    starts = [_bounds(tokens.example_T, trace.examples) for tokens in (encoder, decoder)]
    shift = len(encoder.token_T)
    for example in range(trace.examples):
        first, last = starts[0][example : example + 2]
        after, end = starts[1][example : example + 2]
        order = _original_order(range(first, last), range(shift + after, shift + end), ids, of_token)
        _label_example(order, of_token, classes, words, known)
    labels = {}
    for stack, part in (("encoder", slice(0, shift)), ("decoder", slice(shift, None))):
        begins = [int(piece.starts) for piece in of_token[part]]
        labels[stack] = Labels(np.array(classes[part]), np.array(words[part]), np.array(begins))
    return Words(list(known), labels)


def _read(piece: str) -> _Piece:
    if piece.startswith("<extra_id_"):
        return _Piece(piece, True, SENTINEL)
    if piece in ("<pad>", "</s>", "<unk>"):
        return _Piece(piece, True, SPECIAL)
    text = piece.lstrip(SPACE)
    is_word = not text or any(character.isalnum() for character in text)
    return _Piece(text, piece.startswith(SPACE), OTHER if is_word else PUNCTUATION)


def _bounds(example_T: Array, examples: int) -> list[int]:
    """The first token of each example, and the end."""
    bounds: list[int] = np.searchsorted(example_T, np.arange(examples + 1)).tolist()
    return bounds


def _original_order(encoder: range, decoder: range, ids: list[int], of_token: list[_Piece]) -> list[int]:
    """The tokens of an example in the order of the text that it was made of; a prefix goes before its continuation."""
    spans: dict[int, list[int]] = {}
    span: list[int] = []  # before the first sentinel
    rest = [span]
    for token in decoder:
        if of_token[token].kind == SENTINEL and ids[token] not in spans:
            span = spans[ids[token]] = []
        span.append(token)
    order = []
    for token in encoder:
        order.append(token)
        if of_token[token].kind == SENTINEL:
            order += spans.pop(ids[token], [])
    for left in (*rest, *spans.values()):
        order += left
    return order


def _label_example(
    order: list[int], of_token: list[_Piece], classes: list[int], words: list[int], known: dict[str, int]
) -> None:
    """Fill in the classes and words of the tokens of an example."""
    begins_sentence = True
    word: list[int] = []
    behind_apostrophe = False  # whether the word is

    def end_word() -> None:
        nonlocal begins_sentence
        text = "".join(of_token[token].text for token in word)
        number = known.setdefault(text.lower() or SPACE, len(known))  # a space alone, before punctuation
        kind = class_of_word(text, begins_sentence=begins_sentence)
        if behind_apostrophe and text.lower() in CONTRACTED:
            kind = FUNCTION
        for token in word:
            classes[token], words[token] = kind, number
        if text:
            begins_sentence = False
        word.clear()

    for token in order:
        piece = of_token[token]
        if piece.kind == OTHER:
            if piece.starts and word:
                end_word()
            if piece.starts:
                behind_apostrophe = False
            word.append(token)
            continue
        if piece.kind == PUNCTUATION:
            if word:
                end_word()
            behind_apostrophe = piece.text.endswith(APOSTROPHES)
            if piece.text.endswith(ENDS):
                begins_sentence = True
            elif not set(piece.text) <= SURROUNDS:
                begins_sentence = False
        classes[token] = piece.kind
        words[token] = known.setdefault(piece.text, len(known))
    if word:
        end_word()
