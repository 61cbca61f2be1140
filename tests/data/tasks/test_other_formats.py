"""Questions, choices, summaries, translations: rows in the schema of their source, and their texts, by hand."""

from typing import Any

import pytest

from data.tasks import get

Row = dict[str, Any]


def squad_row(question: str, context: str, *answers: str) -> Row:
    return {"id": "5", "title": "t", "question": question, "context": context,
            "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}  # fmt: skip


def trivia_row(question: str, value: str, *aliases: str, documents: tuple[str, ...] = ()) -> Row:
    return {
        "question": question, "question_id": "tc_1", "question_source": "s",
        "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": list(documents[:1])},
        "search_results": {"description": [], "filename": [], "rank": [], "title": [], "url": [],
                           "search_context": list(documents[1:])},
        "answer": {"value": value, "aliases": list(aliases), "normalized_aliases": [a.lower() for a in aliases],
                   "normalized_value": value.lower(), "type": "WikipediaEntity"},
    }  # fmt: skip


def arc_row(question: str, answer: str, labels: str, *texts: str) -> Row:
    return {
        "id": "M",
        "question": question,
        "choices": {"text": list(texts), "label": list(labels)},
        "answerKey": answer,
    }


CASES: list[tuple[str, Row, list[tuple[str, str]]]] = [
    (
        "squad",
        squad_row("What does increased oxygen concentrations in the patient's lungs displace?",
                  "Hyperbaric (high-pressure) medicine uses\nspecial chambers.", "carbon monoxide", "CO"),
        [("question: What does increased oxygen concentrations in the patient ' s lungs displace ? context: Hyperbaric "
          "( high - pressure ) medicine uses special chambers . ", "carbon monoxide")],
    ),
    (
        "squad",
        squad_row("Where? ", "  In the U.S.\u00a0(“là”)", "U.S."),
        [("question: Where ? context: In the U . S . \u00a0 ( “là” ) ", "U . S . ")],
    ),
    ("squad", squad_row("a_b", "c", "$5"), [("question: a _ b context: c", " $ 5")]),
    ("squad_v2", squad_row("Who?", "No one", "No one"), [("question: Who ? context: No one", "No one")]),
    ("squad_v2", squad_row("Who?", "No one"), [("question: Who ? context: No one", "unanswerable")]),
    ("squad_v2", squad_row("Who", "x", "a", "b"), [("question: Who context: x", "a")]),
    (
        "natural_questions",
        {"question": "when was the last time anyone was on the moon", "answer": ["14 December 1972 UTC", "1972"]},
        [("nq question: when was the last time anyone was on the moon", "14 December 1972 UTC")],
    ),
    ("natural_questions", {"question": "who  is it?", "answer": ["A.B."]}, [("nq question: who  is it?", "A.B.")]),
    ("natural_questions", {"question": "q", "answer": []}, [("nq question: q", "<unk>")]),
    (
        "web_questions",
        {"url": "u", "question": "what is the name of justin bieber brother?", "answers": ["Jazmyn Bieber", "Jaxon"]},
        [("wq question: what is the name of justin bieber brother?", "Jazmyn Bieber")],
    ),
    ("web_questions", {"url": "u", "question": "a", "answers": ["b"]}, [("wq question: a", "b")]),
    ("web_questions", {"url": "u", "question": "a", "answers": []}, [("wq question: a", "<unk>")]),
    (
        "trivia_qa",
        trivia_row("Which Lloyd Webber musical premiered in the US?", "Sunset Boulevard", "Sunset Blvd"),
        [("trivia_qa question: Which Lloyd Webber musical premiered in the US?", "Sunset Boulevard")],
    ),
    ("trivia_qa", trivia_row("q?", "V", "v"), [("trivia_qa question: q?", "V")]),
    ("trivia_qa", trivia_row(" q ", "<unk>"), [("trivia_qa question:  q ", "<unk>")]),
    ("trivia_qa_wikipedia", trivia_row("q?", "V", "v"), [("trivia_qa question: q?", "V")]),
    ("trivia_qa_wikipedia", trivia_row("q", "W", "w"), [("trivia_qa question: q", "W")]),
    ("trivia_qa_wikipedia", trivia_row("r", "W. X.", "w"), [("trivia_qa question: r", "W. X.")]),
    (
        "trivia_qa_documents",
        trivia_row("Who?", "Al", "Al", "Bo", documents=("Al, and\nBO.", "none", "bo")),
        [
            ("question: Who ? context: Al , and BO . ", "al"),
            ("question: Who ? context: Al , and BO . ", "bo"),
            ("question: Who ? context: bo", "bo"),
        ],
    ),
    ("trivia_qa_documents", trivia_row("Who?", "Al", "Al", documents=("none", "none")), []),
    ("trivia_qa_documents", trivia_row("W", "a.c", "a.c", documents=("a.c", "É")),
     [("question: W context: a . c", "a . c")]),
    (
        "arc_easy",
        arc_row("Which technology was developed most recently?", "A", "ABCD", "cellular telephone", "television",
                "refrigerator", "airplane"),
        [("arc_easy question: Which technology was developed most recently? choices: (A) cellular telephone (B) "
          "television (C) refrigerator (D) airplane", "cellular telephone")],
    ),
    ("arc_easy", arc_row("Q?", "3", "123", "x", "y", "z"), [("arc_easy question: Q? choices: (A) x (B) y (C) z", "z")]),
    ("arc_easy", arc_row("Q?", "", "AB", "x", "y"), [("arc_easy question: Q? choices: (A) x (B) y", "<unk>")]),
    (
        "arc_challenge",
        arc_row("Q?", "E", "ABCDE", "v", "w", "x", "y", "z"),
        [("arc_challenge question: Q? choices: (A) v (B) w (C) x (D) y (E) z", "z")],
    ),
    ("arc_challenge", arc_row("Q", "B", "AB", "x.", "y"), [("arc_challenge question: Q choices: (A) x. (B) y", "y")]),
    ("arc_challenge", arc_row("Q", "1", "12", "x", "y"), [("arc_challenge question: Q choices: (A) x (B) y", "x")]),
    (
        "winogrande",
        {"sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.", "option1": "Sarah",
         "option2": "Maria", "answer": "2"},
        [("winogrande sentence: Sarah was a much better surgeon than Maria so _ always got the easier cases. choices: "
          "(A) Sarah (B) Maria", "Maria")],
    ),
    (
        "winogrande",
        {"sentence": "_ won.", "option1": "a", "option2": "b", "answer": "1"},
        [("winogrande sentence: _ won. choices: (A) a (B) b", "a")],
    ),
    (
        "winogrande",
        {"sentence": "_ won.", "option1": "a", "option2": "b", "answer": ""},
        [("winogrande sentence: _ won. choices: (A) a (B) b", "<unk>")],
    ),
    *(
        (f"anli_r{number}", {"uid": "u", "premise": "P.", "hypothesis": "H.", "label": label, "reason": "r"},
         [("anli hypothesis: H. premise: P.", target)])
        for number in (1, 2, 3)
        for label, target in ((0, "entailment"), (1, "neutral"), (2, "contradiction"))
    ),
    *(
        ("xsum", {"document": document, "summary": "Short.\n", "id": "1"}, [(f"summarize: {document}", "Short.\n")])
        for document in ("The long text.\nAnd more.", " x", "")
    ),
    *(
        ("cnn_dailymail", {"article": article, "highlights": "One .\nTwo .", "id": "1"},
         [(f"summarize: {article}", "One .\nTwo .")])
        for article in ("(CNN) -- Text.", "a  b", "ö")
    ),
    *(
        ("wmt14_ende", {"translation": {"de": german, "en": english}},
         [(f"translate English to German: {english}", german)])
        for german, english in (("Das war gut.", "That is good."), ("ä", " b "), ("", "c"))
    ),
    *(
        ("wmt14_enfr", {"translation": {"fr": french, "en": english}},
         [(f"translate English to French: {english}", french)])
        for french, english in (("C'est bon.", "That is good."), ("é", " b "), ("", "c"))
    ),
    *(
        ("wiki_topic", {"title": "T", "text": text, "label": label}, [(f"wiki_topic text: {text}", target)])
        for text, label, target in (("Ma  thematics is.", 5, "Mathematics"), ("a\nb", 1, "Biology and health sciences"),
                                    ("", -1, "<unk>"))
    ),
    *(
        ("hypernym", {"word": "w", "gloss": gloss, "hypernyms": words}, [(f"hypernym gloss: {gloss}", words[0])])
        for gloss, words in (("an entity that is", ["entity"]), ("a; b", ["living thing", "being"]), ("(x) y", ["z"]))
    ),
    *(
        ("synopsis", {"package": "p", "source": "s", "description": text, "synopsis": line},
         [(f"summarize: {text}", line)])
        for text, line in (("A tool. It is good.", "does things"), ("a", "b"), (" c ", "d"))
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), CASES)
def test_inputs_and_targets(name: str, row: Row, expected: list[tuple[str, str]]) -> None:
    assert get(name).examples([row]) == expected


def test_a_choice_is_read_by_its_text() -> None:
    arc, row = get("arc_easy"), arc_row("Q?", "C", "ABCD", "x", "y", "z", "x")
    assert arc.choices(row) == ("x", "y", "z", "x")
    assert [arc.postprocess(text, row) for text in ("x", "z", "C", "")] == [0, 2, -1, -1]
    same = arc_row("Q?", "D", "ABCD", "x", "y", "z", "x")
    assert arc.metrics(["x"], [same]) == {"accuracy": 100.0}, "two choices of the same text are the same answer"
    assert get("boolq").choices({}) == ("False", "True")
    assert get("xsum").choices({}) is None
