"""Metrics of generated texts: ROUGE with rouge-score, BLEU with sacrebleu, exact match."""

from collections.abc import Hashable, Sequence

import numpy as np

ROUGE_KEYS = ("rouge1", "rouge2", "rougeLsum")


def rouge(references: Sequence[str], predictions: Sequence[str], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``rouge1``, ``rouge2`` and ``rougeLsum``: mean F measures over texts, words as they are, not stemmed.

    T5 gives the middle of a bootstrap of this mean, which differs from run to run in its second decimal; this is the
    mean itself.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE_KEYS)
    scores = [
        scorer.score(target=_sentences(reference), prediction=_sentences(prediction))
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {key: 100 * float(np.mean([score[key].fmeasure for score in scores])) for key in ROUGE_KEYS}


def _sentences(text: str) -> str:
    """Return the text with a sentence per line, as rougeLsum needs it, where sentences end with `` . ``."""
    return text.replace(" . ", " .\n")


def bleu(references: Sequence[str], predictions: Sequence[str], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``bleu`` of the corpus, with sacrebleu's international tokenization."""
    from sacrebleu import corpus_bleu

    # force: texts that look tokenized are scored as they are, without a warning.
    score = corpus_bleu(
        list(predictions), [list(references)], smooth_method="exp", smooth_value=0.0, tokenize="intl", force=True
    )
    return {"bleu": score.score}


def sequence_accuracy(
    references: Sequence[str], predictions: Sequence[str], groups: Sequence[Hashable]
) -> dict[str, float]:
    """Return ``sequence_accuracy``: the share of texts that equal their references exactly."""
    return {"sequence_accuracy": 100 * float(np.mean([a == b for a, b in zip(references, predictions, strict=True)]))}
