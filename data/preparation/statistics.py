"""Statistics of a dataset: documents, bytes, tokens and the distribution of document lengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.preparation.gather import Part, size_of
from data.preparation.progress import Progress
from data.tokenizer import UNK_ID, Tokenizer

BATCH_DOCUMENTS = 256


def token_lengths(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[NDArray[np.int64], int]:
    """Return (tokens per document, int64 [documents]; total number of unknown tokens)."""
    lengths, unknown = [], 0
    report = Progress("counting tokens of documents", len(texts))
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        for ids in tokenizer.encode_batch(list(texts[start : start + BATCH_DOCUMENTS])):
            lengths.append(len(ids))
            unknown += int((ids == UNK_ID).sum())
        report.update(len(lengths))
    report.close()
    return np.array(lengths, np.int64), unknown


def describe_parts(parts: Sequence[Part], tokenizer: Tokenizer, histogram: Path) -> dict[str, Any]:
    """Count the documents, bytes and tokens of all text and of each named part, as JSON values.

    Args:
        parts: the text.
        tokenizer: that counts.
        histogram: PNG to write, of the lengths of the training documents.
    """
    train = [token_lengths(part.train, tokenizer) for part in parts]
    validation = [token_lengths(part.validation, tokenizer) for part in parts]
    lengths = np.concatenate([found for found, _ in train])
    plot_lengths(lengths, histogram)
    texts = [text for part in parts for text in part.train]
    description = {
        "train_documents": len(texts),
        "validation_documents": sum(len(part.validation) for part in parts),
        "validation_tokens": sum(int(found.sum()) for found, _ in validation),
        "excluded_documents": sum(part.excluded for part in parts),
        "train_statistics": describe(texts, lengths, sum(unknown for _, unknown in train)),
    }
    domains = {
        part.name: {
            **part.facts,
            "excluded_documents": part.excluded,
            "train": _totals(part.train, *own),
            "validation": _totals(part.validation, *held_out),
        }
        for part, own, held_out in zip(parts, train, validation, strict=True)
        if part.name
    }
    return description | ({"domains": domains} if domains else {})


def _totals(texts: Sequence[str], lengths: NDArray[np.int64], unknown: int) -> dict[str, int]:
    return {
        "documents": len(texts), "bytes": size_of(texts), "tokens": int(lengths.sum()), "unknown_tokens": unknown
    }  # fmt: skip


def describe(texts: Sequence[str], lengths: NDArray[np.int64], unknown: int) -> dict[str, Any]:
    """Return totals, UTF-8 bytes per token and the distribution of tokens per document as JSON values."""
    size = size_of(texts)
    tokens = int(lengths.sum())
    quantiles = np.percentile(lengths, [5, 50, 95]).tolist()
    return {
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "unknown_tokens": unknown,
        "bytes_per_token": round(size / max(1, tokens), 4),
        "tokens_per_document": {
            "mean": round(tokens / len(texts), 2),
            **{name: round(value, 1) for name, value in zip(("p5", "median", "p95"), quantiles, strict=True)},
            "longest": int(lengths.max()),
        },
    }


def plot_lengths(lengths: NDArray[np.int64], path: Path) -> None:
    """Write a histogram of the tokens per document as PNG, with logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    edges = np.geomspace(1, max(2, int(lengths.max()) + 1), 60)
    axes.hist(np.maximum(lengths, 1), bins=np.unique(edges.round()).tolist())
    axes.set(xscale="log", yscale="log", xlabel="tokens per document", ylabel="documents")
    median = float(np.median(lengths))
    axes.axvline(max(median, 1.0), color="black", linestyle="--", label=f"median {median:,.0f}")
    axes.legend()
    figure.savefig(path, dpi=150)
