"""GLUE: rows in the schema of the Hub's ``glue``, and what T5's paper (appendix D) makes of them, by hand."""

from typing import Any

import pytest

from data.tasks import get

NLI_PREMISE = (
    "yeah well losing is i mean i'm i'm originally from Saint Louis and Saint Louis Cardinals when they were there "
    "were uh a mostly a losing team but"
)
MRPC = (
    "We acted because we saw the existing evidence in a new light , through the prism of our experience on 11 "
    'September , " Rumsfeld said .',
    'Rather , the US acted because the administration saw " existing evidence in a new light , through the prism of '
    'our experience on September 11 " .',
)

# (task, texts of the row's columns, inputs, {label: targets})
CASES: list[tuple[str, dict[str, str], str, dict[float, str]]] = [
    (
        "cola",
        {"sentence": "John made Bill master of himself."},
        "cola sentence: John made Bill master of himself.",
        {1: "acceptable", 0: "unacceptable", -1: "<unk>"},
    ),
    (
        "sst2",
        {"sentence": "it confirms fincher 's status as a film maker . "},
        "sst2 sentence: it confirms fincher 's status as a film maker . ",
        {1: "positive", 0: "negative", -1: "<unk>"},
    ),
    (
        "glue_sst2",
        {"sentence": "it confirms fincher 's status as a film maker . "},
        "sst2 sentence: it confirms fincher 's status as a film maker . ",
        {1: "positive", 0: "negative", -1: "<unk>"},
    ),
    (
        "mrpc",
        {"sentence1": MRPC[0], "sentence2": MRPC[1]},
        f"mrpc sentence1: {MRPC[0]} sentence2: {MRPC[1]}",
        {1: "equivalent", 0: "not_equivalent", -1: "<unk>"},
    ),
    (
        "stsb",
        {"sentence1": "Puretunes could not be reached.", "sentence2": "Puretunes could not be located."},
        "stsb sentence1: Puretunes could not be reached. sentence2: Puretunes could not be located.",
        # 3.25 is as far from 3.2 as 16.25 is from 16 of its fifths; half a fifth goes to the even one.
        {3.25: "3.2", 1.8: "1.8", 2.5: "2.4", 5.0: "5.0", 0.0: "0.0", 4.714: "4.8", 0.3: "0.4", -1.0: "-1.0"},
    ),
    (
        "qqp",
        {"question1": "What attributes would have made you highly desirable in ancient Rome?",
         "question2": "How I GET OPPERTINUTY TO JOIN IT COMPANY AS A FRESHER?"},
        "qqp question1: What attributes would have made you highly desirable in ancient Rome? question2: How I GET "
        "OPPERTINUTY TO JOIN IT COMPANY AS A FRESHER?",
        {0: "not_duplicate", 1: "duplicate", -1: "<unk>"},
    ),
    (
        "mnli",
        {"premise": NLI_PREMISE, "hypothesis": "The St. Louis Cardinals have always won."},
        f"mnli hypothesis: The St. Louis Cardinals have always won. premise: {NLI_PREMISE}",
        {2: "contradiction", 1: "neutral", 0: "entailment", -1: "<unk>"},
    ),
    (
        "mnli_mismatched",
        {"premise": "P", "hypothesis": "H"},
        "mnli hypothesis: H premise: P",
        {2: "contradiction", 1: "neutral", 0: "entailment"},
    ),
    (
        "qnli",
        {"question": "Where did Jebe die?", "sentence": "Genghis Khan recalled Subutai, and Jebe died on the road."},
        "qnli question: Where did Jebe die? sentence: Genghis Khan recalled Subutai, and Jebe died on the road.",
        {0: "entailment", 1: "not_entailment", -1: "<unk>"},
    ),
    (
        "glue_rte",
        {"sentence1": "Some 3000 said they were Italians.", "sentence2": "Slovenia has 3,000 inhabitants."},
        "rte sentence1: Some 3000 said they were Italians. sentence2: Slovenia has 3,000 inhabitants.",
        {1: "not_entailment", 0: "entailment", -1: "<unk>"},
    ),
    (
        "wnli",
        {"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The worm was tasty."},
        "wnli sentence1: The fish ate the worm. It was tasty. sentence2: The worm was tasty.",
        {1: "entailment", 0: "not_entailment", -1: "<unk>"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "texts", "inputs", "targets"), CASES)
def test_inputs_and_targets(name: str, texts: dict[str, str], inputs: str, targets: dict[float, str]) -> None:
    rows: list[dict[str, Any]] = [{**texts, "label": label, "idx": 0} for label in targets]
    assert len(rows) >= 3
    assert get(name).examples(rows) == [(inputs, target) for target in targets.values()]


def test_similarities_are_numbers() -> None:
    stsb = get("stsb")
    assert [stsb.postprocess(text, {}) for text in ("3.2", "five", "")] == [3.2, -1.0, -1.0]
