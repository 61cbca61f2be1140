"""SuperGLUE: rows in the schema of the Hub's ``super_glue``, and what T5's paper (appendix D) makes of them."""

from typing import Any

import pytest

from data.sources.retry import DataError
from data.tasks import get

Row = dict[str, Any]

WSC_IN_TWO_PLACES = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use it , but really for now, what more could they wish for?"
)
PASSAGE = (
    'A man was hurt in Leeds.\n@highlight\nThe man, 30, is in hospital\n@highlight\nPolice said: "Come forward"\n'
    "@highlight\nWho saw it?"
)
JOINED_PASSAGE = 'A man was hurt in Leeds. The man, 30, is in hospital. Police said: "Come forward" Who saw it?'
CB_PREMISE = (
    "Valence the void-brain, Valence the virtuous valet. Why couldn't the figger choose his own portion of titanic "
    "anatomy to shaft? Did he think he was helping?"
)

CASES: list[tuple[str, Row, list[tuple[str, str]]]] = [
    (
        "boolq",
        {"question": "is france the same timezone as the uk", "passage": "At 03:00 GMT, clocks change.", "label": 0,
         "idx": 3},
        [("boolq passage: At 03:00 GMT, clocks change. question: is france the same timezone as the uk", "False")],
    ),
    (
        "boolq",
        {"question": "do iran and afghanistan speak  the same language", "passage": "Persian (/pɜrʒən/) …\nis one.",
         "label": 1, "idx": 0},
        [("boolq passage: Persian (/pɜrʒən/) …\nis one. question: do iran and afghanistan speak  the same language",
          "True")],
    ),
    ("boolq", {"question": "q", "passage": "p ", "label": -1, "idx": 1}, [("boolq passage: p  question: q", "<unk>")]),
    (
        "cb",
        {"premise": CB_PREMISE, "hypothesis": "Valence was helping", "label": 1, "idx": 0},
        [(f"cb hypothesis: Valence was helping premise: {CB_PREMISE}", "contradiction")],
    ),
    ("cb", {"premise": "P", "hypothesis": "H", "label": 0, "idx": 1}, [("cb hypothesis: H premise: P", "entailment")]),
    ("cb", {"premise": "P.", "hypothesis": "H", "label": 2, "idx": 2}, [("cb hypothesis: H premise: P.", "neutral")]),
    (
        "copa",
        {"premise": "Political violence broke out in the nation.", "choice1": "Many citizens relocated to the capitol.",
         "choice2": "Many citizens took refuge in other territories.", "question": "effect", "label": 1, "idx": 0},
        [("copa choice1: Many citizens relocated to the capitol. choice2: Many citizens took refuge in other "
          "territories. premise: Political violence broke out in the nation. question: effect", "choice2")],
    ),
    (
        "copa",
        {"premise": "My body cast a shadow over the grass.", "choice1": "The sun rose.",
         "choice2": "The grass was cut.", "question": "cause", "label": 0, "idx": 1},
        [("copa choice1: The sun rose. choice2: The grass was cut. premise: My body cast a shadow over the grass. "
          "question: cause", "choice1")],
    ),
    (
        "copa",
        {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": -1, "idx": 2},
        [("copa choice1: a choice2: b premise: p question: cause", "<unk>")],
    ),
    (
        "multirc",
        {"paragraph": "<b>Sent 1: </b>Once upon a time, there was a squirrel named Joey.<br><b>Sent 2: </b>Joey loved "
         "to play.<br>", "question": "Who loved to play?", "answer": "<b>Joey</b>", "label": 1,
         "idx": {"paragraph": 0, "question": 1, "answer": 2}},
        [("multirc question: Who loved to play? answer: Joey paragraph: Sent 1: Once upon a time, there was a squirrel "
          "named Joey. Sent 2: Joey loved to play. ", "True")],
    ),
    (
        "multirc",
        {"paragraph": "<p>a</p><br><br>b", "question": "q<br>r", "answer": "<B>x</B>", "label": 0,
         "idx": {"paragraph": 0, "question": 0, "answer": 0}},
        [("multirc question: q r answer: <B>x</B> paragraph: <p>a</p>  b", "False")],
    ),
    (
        "multirc",
        {"paragraph": "b", "question": "q", "answer": "a", "label": -1,
         "idx": {"paragraph": 0, "question": 0, "answer": 0}},
        [("multirc question: q answer: a paragraph: b", "<unk>")],
    ),
    (
        "record",
        {"passage": PASSAGE, "query": "@placeholder said so.", "entities": ["Leeds", "Police"],
         "answers": ["Police", "the police"], "idx": {"passage": 4, "query": 7}},
        [
            (f"record query: @placeholder said so. entities: Leeds, Police passage: {JOINED_PASSAGE}", "Police"),
            (f"record query: @placeholder said so. entities: Leeds, Police passage: {JOINED_PASSAGE}", "the police"),
        ],
    ),
    (
        "record",
        {"passage": "Is it 'so'\n@highlight\nYes", "query": "@placeholder", "entities": ["a"], "answers": ["a"],
         "idx": {"passage": 0, "query": 0}},
        [("record query: @placeholder entities: a passage: Is it 'so' Yes", "a")],
    ),
    (
        "record",
        {"passage": "No\n@highlight", "query": "q", "entities": [], "answers": [], "idx": {"passage": 0, "query": 0}},
        [("record query: q entities:  passage: No\n@highlight", "<unk>")],
    ),
    (
        "rte",
        {"premise": "No Weapons of Mass Destruction Found in Iraq Yet.", "hypothesis": "Weapons of Mass Destruction "
         "Found in Iraq.", "label": 1, "idx": 0},
        [("rte hypothesis: Weapons of Mass Destruction Found in Iraq. premise: No Weapons of Mass Destruction Found in "
          "Iraq Yet.", "not_entailment")],
    ),
    ("rte", {"premise": "P", "hypothesis": "H", "label": 0}, [("rte hypothesis: H premise: P", "entailment")]),
    ("rte", {"premise": "P", "hypothesis": "H", "label": -1, "idx": 2}, [("rte hypothesis: H premise: P", "<unk>")]),
    (
        "wic",
        {"word": "deliberation", "sentence1": "It was the deliberation of his act that was insulting .",
         "sentence2": "The deliberations of the jury .", "start1": 11, "start2": 4, "end1": 23, "end2": 17, "idx": 0,
         "label": 0},
        [("wic sentence1: It was the deliberation of his act that was insulting . sentence2: The deliberations of the "
          "jury . word: deliberation", "False")],
    ),
    (
        "wic",
        {"word": "place", "sentence1": "a", "sentence2": "b", "start1": 0, "start2": 0, "end1": 0, "end2": 0, "idx": 1,
         "label": 1},
        [("wic sentence1: a sentence2: b word: place", "True")],
    ),
    (
        "wic",
        {"word": "w", "sentence1": "a", "sentence2": "b", "start1": 0, "start2": 0, "end1": 0, "end2": 0, "idx": 1,
         "label": -1},
        [("wic sentence1: a sentence2: b word: w", "<unk>")],
    ),
    (
        "wsc",
        {"text": "The stable was very roomy, with four good stalls; a large swinging window opened into the yard , "
         "which made it pleasant and airy.", "span1_index": 1, "span1_text": "stable", "span2_index": 20,
         "span2_text": "it", "idx": 0, "label": 1},
        [("wsc: The stable was very roomy, with four good stalls; a large swinging window opened into the yard , which "
          "made *it* pleasant and airy.", "stable")],
    ),
    (
        "wsc",
        {"text": WSC_IN_TWO_PLACES, "span1_index": 17, "span1_text": "the magic pebble", "span2_index": 29,
         "span2_text": "it", "idx": 1, "label": 1},
        [("wsc: " + WSC_IN_TWO_PLACES.replace("use it ,", "use *it* ,"), "the magic pebble")],
    ),
    (
        "wsc",
        {"text": "Bob asked Tom if  he could lend money to X .", "span1_index": 0, "span1_text": "Bob",
         "span2_index": 5, "span2_text": "he", "idx": 2, "label": 1},
        [("wsc: Bob asked Tom if  *he* could lend money to *he* .", "Bob")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), CASES)
def test_inputs_and_targets(name: str, row: Row, expected: list[tuple[str, str]]) -> None:
    assert get(name).examples([row]) == expected


def test_wsc_is_trained_on_right_referents_and_evaluated_on_all() -> None:
    rows = [{"text": "Tom saw that he slept .", "span1_index": 0, "span1_text": name, "span2_index": 3,
             "span2_text": "he", "idx": 0, "label": label} for name, label in (("Tom", 1), ("Bob", 0))]  # fmt: skip
    wsc = get("wsc")
    assert wsc.examples(rows) == [("wsc: Tom saw that *he* slept .", "Tom")]
    assert [targets for _, targets in wsc.examples(rows, "validation")] == ["Tom", "Bob"]


def test_wsc_names_the_row_whose_index_is_not_its_pronoun() -> None:
    row = {"text": "Tom saw that he slept .", "span1_text": "Tom", "span2_index": 2, "span2_text": "he", "label": 1}
    with pytest.raises(DataError, match=r"word 2 of the row 'Tom saw that he slept \.' is not its pronoun 'he'"):
        get("wsc").examples([row])


@pytest.mark.parametrize(
    ("said", "candidate", "meaning"),
    [
        ("stable", "The stable", 1),
        ("the fuzzy bunny", "bunny", 1),
        ("Bunny", "the fuzzy bunny", 1),
        ("Bob", "Bob's hat", 0),
        ("Bob's", "Bob's hat", 1),
        ("Tom", "Bob", 0),
        ("", "Bob", -1),
        ("  The ", "Bob", -1),
        ("Bob Tom", "Tom Ann", 0),
    ],
)
def test_wsc_answers(said: str, candidate: str, meaning: int) -> None:
    assert get("wsc").postprocess(said, {"span1_text": candidate}) == meaning


def test_labels_are_read_exactly() -> None:
    cb = get("cb")
    assert cb.labels == ("entailment", "contradiction", "neutral")
    assert [cb.postprocess(text, {}) for text in ("neutral", "entailment", "Neutral", "neutral ", "")] == [
        2,
        0,
        -1,
        -1,
        -1,
    ]
    assert get("record").postprocess("any text", {}) == "any text"
