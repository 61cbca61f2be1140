"""Words of tokens, and their classes: by rules and closed lists, since no tagger is at hand.

A text that was corrupted is put together again, so that a word which a mask has cut is one word in both stacks: the
decoder's tokens after a sentinel stand where the encoder has it. The rules, the first that holds:

1. *sentinel*: <extra_id_k>. *special*: start, end, unknown piece.
2. *punctuation*: a piece without letter or digit. It also ends a word, so that ``well-known`` are two.
3. All other pieces belong to a word, which begins with a space; every piece has its word's class.
   *number*: has a digit, or is in NUMBERS. *function word*: is in FUNCTION_WORDS, which are English, French and
   Spanish, less nouns of English (``son``, ``car``) and single letters (``y``). *name*: begins with a capital and not
   a sentence; so ``American`` and ``NATO`` count, and the first word of a sentence never does. *verb*: is in VERBS, or
   has at least five letters and ends in -ed, -ing, -ize or -ise, and is not in NO_VERBS; participles that serve as
   adjectives or nouns count, and present forms that are nouns too (``work``) do not, nor do the verbs of other
   languages. *other*: the rest.

A sentence begins at the first word of an example and after ``.``, ``!`` and ``?``; so it does after ``Dr.``
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from studies.routing.trace import Array, Trace

CLASSES = ("sentinel", "special", "punctuation", "number", "function word", "name", "verb", "other")
SENTINEL, SPECIAL, PUNCTUATION, NUMBER, FUNCTION, NAME, VERB, OTHER = range(len(CLASSES))
SPACE = "▁"  # SentencePiece's
ENDS = (".", "!", "?")
SURROUNDS = frozenset(
    "\"'`()[]{}“”\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}«»*_"
)  # may stand between the end of a sentence and the next


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS = _listed("""
    a an the this that these those my your his her its our their whose i you he she it we they me him us them mine
    yours hers ours theirs myself yourself himself herself itself ourselves yourselves themselves who whom which what
    whoever whatever one's someone somebody something anyone anybody anything everyone everybody everything no nobody
    nothing none each every either neither both all some any much many more most few fewer less least several other
    others another such same own enough
    of in on at by for with from to into onto upon about above below under over between among through during before
    after since until till against toward towards across along around behind beside besides beyond near off out up down
    within without despite except per via amid amongst throughout underneath inside outside unlike like than as
    and or but nor so yet if unless whether because although though while whereas when whenever where wherever why how
    however therefore thus hence once
    be am is are was were been being have has had having do does did doing done will would shall should can could may
    might must ought need dare not cannot
    there here then now also too very just only even still again ever never always often quite rather almost already
    perhaps else
    s t d m re ve ll don didn doesn isn wasn aren weren won wouldn couldn shouldn hasn haven hadn
    le la les un une des du au aux de et ou où ni mais donc que qui quoi dont quel quelle ce cet cette ces il elle ils
    elles nous vous je tu lui leur leurs sa ses mes tes nos vos notre votre dans par avec sans sous sur vers chez entre
    depuis pendant est sont était étaient été être avoir ont avait eu ne pas très aussi comme si en se qu
    el los las una unos unas del al pero porque cuando donde quien quienes cual cuales cuyo cuya este esta estos
    estas ese esa esos esas aquel aquella yo tú él ella ellos ellas nosotros le les lo su sus mi mis tu tus nuestro
    nuestra para por con según sobre desde hasta hacia entre es fue ser estar está están han había haber no ya muy
    más también como se si ni que""")
NUMBERS = _listed("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million
    millions billion billions dozen first second third fourth fifth sixth seventh eighth ninth tenth""")
VERBS = _listed("""
    say says said make makes made go goes went gone take takes took taken come comes came become becomes became see
    sees saw seen know knows knew known get gets got gotten give gives gave given find finds found think thinks thought
    tell tells told leave leaves left feel feels felt put bring brings brought begin begins began begun keep keeps kept
    hold holds held write writes wrote written stand stands stood hear hears heard let mean means meant set meet meets
    met run runs ran pay pays paid sit sits sat speak speaks spoke spoken lie lies lay lead leads led read grow grows
    grew grown lose loses lost fall falls fell fallen send sends sent build builds built understand understands
    understood draw draws drew drawn break breaks broke broken spend spends spent cut rise rises rose risen drive drives
    drove driven buy buys bought wear wears wore worn choose chooses chose chosen seek seeks sought eat eats ate eaten
    win wins won teach teaches taught fight fights fought catch catches caught sell sells sold bear bears bore borne
    born shows shown seem seems appear appears include includes contain contains consist consists remain remains allow
    allows require requires provide provides serve serves believe believes live lives love loves want wants try tries
    tried follow follows occur occurs exist exists use uses refer refers belong belongs produce produces describe
    describes consider considers continue continues die dies died receive receives""")
NO_VERBS = _listed("""
    thing things king kings nothing something anything everything during morning evening spring string hundred
    hundreds building buildings ceiling wedding sibling siblings sacred naked wicked rugged aged breed speed indeed
    exceed proceed succeed agreed wise otherwise likewise rise exercise promise premise precise noise praise size prize
    viking sterling shilling pudding herring darling earring being beings weed greed steed bleed creed""")
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

    def end_word() -> None:
        nonlocal begins_sentence
        text = "".join(of_token[token].text for token in word)
        number = known.setdefault(text.lower() or SPACE, len(known))  # a space alone, before punctuation
        kind = class_of_word(text, begins_sentence=begins_sentence)
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
            word.append(token)
            continue
        if piece.kind == PUNCTUATION:
            if word:
                end_word()
            if piece.text.endswith(ENDS):
                begins_sentence = True
            elif not set(piece.text) <= SURROUNDS:
                begins_sentence = False
        classes[token] = piece.kind
        words[token] = known.setdefault(piece.text, len(known))
    if word:
        end_word()
