"""Sentences with sentinels: how they are read, given to a model, and filled. Imports no torch."""

import re
from typing import NamedTuple

from data.tokenizer import Tokenizer

SENTINEL = re.compile(r"<extra_id_(\d+)>")
EXAMPLE = "such as 'Paris is the <extra_id_0> of <extra_id_1>.'"


class Sentence(NamedTuple):
    """A sentence cut at its sentinels: one part more than spans."""

    parts: list[str]

    @property
    def spans(self) -> int:
        """The number of spans that are asked for."""
        return len(self.parts) - 1

    def filled(self, spans: list[str]) -> str:
        """Return the sentence with its spans, of which the last ones may be missing."""
        text = self.parts[0]
        for number, part in enumerate(self.parts[1:]):
            text += (spans[number] if number < len(spans) else f"<extra_id_{number}>") + part
        return text


def parse_sentence(text: str, name: str, most: int = Tokenizer.num_sentinels) -> Sentence:
    """Cut a sentence at its sentinels.

    Args:
        text: one line.
        name: of the sentence, for messages.
        most: sentinels of the vocabulary.

    Raises:
        ValueError: it has no sentinel, too many, or others than <extra_id_0>, <extra_id_1>, … in this order.
    """
    parts = SENTINEL.split(text)
    numbers = [int(number) for number in parts[1::2]]
    rest = " ".join(parts[::2])
    if "<extra_id" in rest or "\0" in text:
        raise ValueError(f"{name} has a sentinel that is spelled otherwise than <extra_id_0>: {text!r}")
    if not numbers:
        raise ValueError(f"{name} has no sentinel to fill: write <extra_id_0> where text is missing, {EXAMPLE}")
    if numbers != list(range(len(numbers))):
        found = ", ".join(f"<extra_id_{number}>" for number in numbers)
        raise ValueError(f"{name} has the sentinels {found}: number them from 0 in the order of the text, {EXAMPLE}")
    if len(numbers) > most:
        raise ValueError(f"{name} has {len(numbers)} sentinels, the vocabulary has {most}: ask for fewer")
    return Sentence(parts[::2])


def encode(sentence: Sentence, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a sentence as the model was trained on them: parts, sentinels between them, EOS."""
    ids = []
    for number, part in enumerate(tokenizer.encode_batch(sentence.parts)):
        if number:
            ids.append(tokenizer.first_sentinel_id - number + 1)
        ids += part.tolist()
    return [*ids, tokenizer.eos_id]


def decode(ids: list[int], sentence: Sentence, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each span that ``ids``, an output of the model, gives."""
    spans: list[list[int]] = []
    for token in ids:
        if token == tokenizer.eos_id:
            break
        if token == tokenizer.first_sentinel_id - len(spans):
            spans.append([])
        elif spans:
            spans[-1].append(token)
    return [tokenizer.decode(span) for span in spans[: sentence.spans]]
