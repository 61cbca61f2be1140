"""Generation that fills each span in turn and stops after the last one.

Shape suffixes: R = rows (sentences times beams), T = decoder positions, V = vocabulary.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from data.tokenizer import Tokenizer

NEVER = float("-inf")


class SpansInTurn(LogitsProcessor):
    """Allows the sentinels of a sentence in their order, text after each, and the end after the last span.

    The sentinel that would follow the last one counts as the end, as a model that continues would write it there.

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
