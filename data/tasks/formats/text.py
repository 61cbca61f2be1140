"""Text operations with the meaning that they have in T5's formats."""

import re

# RE2's [[:punct:]] and \s, which know ASCII alone; \s has no vertical tab.
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
WHITE_SPACE = re.compile(r"[\t\n\f\r ]+")


def pad_punctuation(text: str) -> str:
    """Return the text with spaces around each punctuation mark and white space made single spaces; not stripped."""
    return WHITE_SPACE.sub(" ", PUNCTUATION.sub(r" \1 ", text))


def join_words(*texts: str) -> str:
    """Join with spaces and make white space single spaces; not stripped."""
    return WHITE_SPACE.sub(" ", " ".join(texts))


def lower_ascii(text: str) -> str:
    """Return the text with the letters A to Z, and no others, in lower case."""
    return text.encode().lower().decode()
