"""The Winograd schema challenge: the pronoun between asterisks, its referent as target."""

from data.sources.retry import DataError
from data.tasks.sources.base import Row
from data.tasks.task import Format, Pair

# Two rows of SuperGLUE whose index is not that of the pronoun; T5 has the same two sentences with the pronoun as X.
_MENDED = {
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    '"Good for him," he said. ': "The boy continued to whip the pony , and eventually the pony threw him over. John "
    'laughed out quite loud. "Good for X ," he said.',
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use it , but really for now, what more could they wish for?": "When they had "
    "eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe . Some day "
    "they might want to use X , but really for now, what more could they wish for?",
}

# Words that an answer may have, or lack.
_DETERMINERS = frozenset(
    {
        "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their",
        "these", "this", "those", "which", "whose", "your",
    }
)  # fmt: skip


def pronoun_in_asterisks() -> Format:
    """Return the format ``wsc: … *he* …``. The target is the candidate; training uses the right ones."""

    def pairs(row: Row) -> list[Pair]:
        return [("wsc: " + _with_pronoun_as_x(row).replace(" X ", f" *{row['span2_text']}* "), row["span1_text"])]

    columns = ("text", "span1_text", "span2_text", "span2_index", "label")
    return Format(columns, "wsc: … *pronoun* …", pairs, is_trained_on=lambda row: bool(row["label"]))


def _with_pronoun_as_x(row: Row) -> str:
    words, index = row["text"].split(" "), row["span2_index"]
    if row["text"] in _MENDED:
        return _MENDED[row["text"]]
    if not 0 < index < len(words) or words[index] != row["span2_text"]:
        raise DataError(
            f"word {index} of the row {row['text'][:60]!r} is not its pronoun {row['span2_text']!r}: use the "
            "rows of the configuration wsc.fixed"
        )
    return " ".join([" ".join(words[:index]), "X", " ".join(words[index + 1 :])])


def names_referent(prediction: str, row: Row) -> int:
    """Return 1 if a prediction names the candidate of a row, 0 if not, -1 if it says nothing.

    Case and determiners do not matter. All words of one must be words of the other, and both or neither must have an
    apostrophe: "Bob" is not "Bob's hat".
    """
    said, candidate = _bare(prediction), _bare(row["span1_text"])
    if not said:
        return -1
    if ("'" in said) != ("'" in candidate):
        return 0
    said_words, candidate_words = set(said.split(" ")), set(candidate.split(" "))
    return int(said_words <= candidate_words or candidate_words <= said_words)


def _bare(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)
