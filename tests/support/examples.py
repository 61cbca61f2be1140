"""From examples back to their text."""

from data.tokenizer import Tokenizer


def raw_tokens(inputs: list[int], labels: list[int], tokenizer: Tokenizer) -> list[int]:
    """Undo padding and span corruption, token by token."""
    kept, targets = [i for i in inputs if i != 0], [i for i in labels if i != -100]
    assert kept.pop() == targets.pop() == tokenizer.eos_id
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token >= tokenizer.num_pieces:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out: list[int] = []
    for token in kept:
        out += spans[token] if token >= tokenizer.num_pieces else [token]
    return out
