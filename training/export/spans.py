"""Sentences with sentinels, and generation that fills each span in turn and stops after the last one.

Shape suffixes: R = rows (sentences times beams), T = decoder positions, V = vocabulary.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from data.tokenizer import Tokenizer

SENTINEL = re.compile(r"<extra_id_(\d+)>")
EXAMPLE = "such as 'Paris is the <extra_id_0> of <extra_id_1>.'"
NEVER = float("-inf")


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


class SpansInTurn(LogitsProcessor):
    """Allows the sentinels of a sentence in their order, text after each, and the end after the last span.

    The sentinel that would follow the last one counts as the end, as a model that goes on would write it there.

    Args:
        spans: spans of each sentence; rows of a sentence stand together.
        tokenizer: of the model.
    """

    def __init__(self, spans: list[int], tokenizer: Tokenizer):
        self.spans, self.tokenizer = spans, tokenizer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores of what may not come next to minus infinity: ``[R, T]``, ``[R, V]`` → ``[R, V]``."""
        first, last = self.tokenizer.num_pieces, self.tokenizer.first_sentinel_id
        scores = scores.clone()
        scores[:, [self.tokenizer.pad_id, self.tokenizer.unk_id]] = NEVER
        scores[:, self.tokenizer.vocab_size :] = NEVER  # rows that only pad the embedding
        rows_each = len(scores) // len(self.spans)
        for row, (ids_T, scores_V) in enumerate(zip(input_ids, scores, strict=True)):
            wanted = self.spans[row // rows_each]
            sentinel_T = (ids_T >= first) & (ids_T <= last)
            written = int(sentinel_T.sum())
            if bool((ids_T[1:] == self.tokenizer.eos_id).any()):
                continue  # a beam that has ended
            following = last - written
            end = self.tokenizer.eos_id
            if written == 0:
                only, scores_V[:] = scores_V[following].clone(), NEVER
                scores_V[following] = only if torch.isfinite(only) else 0.0
                continue
            next_score = scores_V[following].clone() if following >= first else scores_V.new_tensor(NEVER)
            scores_V[first : last + 1] = NEVER
            if bool(sentinel_T[-1]):
                scores_V[end] = NEVER  # a span has at least one token
            elif written < wanted:
                scores_V[end] = NEVER
                scores_V[following] = next_score
            else:
                scores_V[end] = torch.logaddexp(scores_V[end], next_score)
        return scores
