"""All statistics of a trace, as plain values: what the tables, the pictures and ``statistics.json`` show.

Shape suffixes: T = tokens, E = experts, W = words, C = classes, B = bins of positions.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from studies.routing.entropies import (
    ClassEntropy,
    Estimate,
    class_entropies,
    decoder_above_encoder,
    resamples,
)
from studies.routing.experts import (
    class_shares,
    count_table,
    off_diagonal,
    overlap,
    specific_words,
)
from studies.routing.information import BINS, frequent, information_of_layers, positions_in_bins
from studies.routing.stability import agreement, check_comparable
from studies.routing.trace import Array, Trace
from studies.routing.words import CLASSES, Words, label

DOMAIN = "domain"
Statistics = dict[str, Any]


def analyze(trace: Trace, other: Trace | None, *, permutations: int, seed: int) -> Statistics:
    """Return the statistics, JSON but for NaN.

    Args:
        trace: of the model.
        other: of another checkpoint, over the same text.
        permutations: of each test.
        seed: of permutations and resamples.

    Raises:
        ValueError: ``other`` is of other text or another model.
    """
    if other is not None:
        check_comparable(trace, other)
    words = label(trace)
    weights_RX = resamples(trace.examples, seed=seed)
    entropies = {layer: _entropies(trace, layer, words, weights_RX) for layer in trace.layers}
    found: Statistics = {
        "model": trace.described(),
        "routing": trace.routing,
        "experts": trace.num_experts,
        "examples": trace.examples,
        "domains": {name: int((trace.domain_X == i).sum()) for i, name in enumerate(trace.domains)},
        "tokens": {stack: len(tokens.token_T) for stack, tokens in trace.stacks.items()},
        "uniform_entropy": math.log(trace.num_experts),
        "permutations": permutations,
        "resamples": len(weights_RX),
        "seed": seed,
        "classes": list(CLASSES),
        "layers": {layer: _layer(trace, layer, words, entropies[layer]) for layer in trace.layers},
        "information": _information(trace, words, permutations, seed),
        "decoder_above_encoder": {
            name: _decoder_above_encoder({layer: of_classes[number] for layer, of_classes in entropies.items()})
            for number, name in enumerate(CLASSES)
        },
    }
    if other is not None:
        found["stability"] = {"against": other.described(), "layers": _stability(trace, other, words, weights_RX)}
    return found


def token_factors(trace: Trace, stack: str, words: Words) -> dict[str, Array]:
    """Return what a token of a stack is, by factor: int64 values from 0. The domain only where there are several."""
    tokens, labels = trace.stacks[stack], words.labels[stack]
    factors = {
        "class": labels.class_T,
        "piece": frequent(np.unique(tokens.token_T, return_inverse=True)[1]),
        "word": frequent(labels.word_T),
        "word start": labels.starts_T,
        "position": positions_in_bins(tokens.position_T),
    }
    if len(trace.domains) > 1:
        factors[DOMAIN] = trace.domain_X[tokens.example_T].astype(np.int64)
    return factors


def _entropies(trace: Trace, layer: str, words: Words, weights_RX: Array) -> list[ClassEntropy]:
    routed, tokens = trace.layers[layer], trace.tokens_of(layer)
    return class_entropies(
        routed.first_T,
        routed.entropy_T,
        words.labels[layer.partition("_")[0]].class_T,
        tokens.example_T,
        experts=trace.num_experts,
        classes=len(CLASSES),
        weights_RX=weights_RX,
    )


def _layer(trace: Trace, layer: str, words: Words, entropies: list[ClassEntropy]) -> Statistics:
    routed, tokens = trace.layers[layer], trace.tokens_of(layer)
    labels, experts, similarity = words.labels[layer.partition("_")[0]], trace.num_experts, trace.similarity[layer]
    counts_EW = count_table(routed.first_T, labels.word_T, experts, len(words.texts))
    counts_EC = count_table(routed.first_T, labels.class_T, experts, len(CLASSES))
    counts_EB = count_table(routed.first_T, positions_in_bins(tokens.position_T), experts, BINS)
    counts_E = counts_EC.sum(1)
    load_E = counts_E / max(counts_E.sum(), 1)
    domains = {}
    if len(trace.domains) > 1:
        counts_ED = count_table(
            routed.first_T, trace.domain_X[tokens.example_T].astype(np.int64), experts, len(trace.domains)
        )
        domains = dict(zip(trace.domains, class_shares(counts_ED).tolist(), strict=True))
    overlap_EE = overlap(counts_EW)
    return {
        "load": load_E.tolist(),
        "entropy": {
            name: {"tokens": one.tokens, "experts": _estimate(one.experts), "router": _estimate(one.router)}
            for name, one in zip(CLASSES, entropies, strict=True)
        },
        "router": _router(trace, layer),
        "class_shares": dict(zip(CLASSES, class_shares(counts_EC).tolist(), strict=True)),
        "domain_shares": domains,
        "position_load": class_shares(counts_EB).tolist(),
        "words": [[asdict(word) for word in of_expert] for of_expert in specific_words(counts_EW, words.texts)],
        "similarity": {
            name: _matrix(matrix)
            for name, matrix in (
                ("weights", similarity.weights_EE),
                ("router", similarity.router_EE),
                ("words", overlap_EE),
            )
        },
    }


def _router(trace: Trace, layer: str) -> Statistics:
    routed = trace.layers[layer]
    tokens = max(len(routed.first_T), 1)
    return {
        "entropy": float(routed.entropy_T.astype(np.float64).mean()),
        "logsumexp": float(routed.logsumexp_T.astype(np.float64).mean()),
        "largest_logsumexp": float(routed.logsumexp_T.max()),
        "first_gate": float(routed.gate_TN[:, 0].astype(np.float64).mean()),
        "unserved": float((~routed.kept_TN.any(1)).sum() / tokens),
    }


def _matrix(matrix_EE: Array) -> Statistics:
    pairs = off_diagonal(matrix_EE).astype(np.float64)
    return {
        "mean": float(pairs.mean()) if len(pairs) else float("nan"),
        "largest": float(pairs.max()) if len(pairs) else float("nan"),
        "matrix": np.round(matrix_EE.astype(np.float64), 4).tolist(),
    }


def _information(trace: Trace, words: Words, permutations: int, seed: int) -> Statistics:
    found: Statistics = {}
    for stack, tokens in trace.stacks.items():
        experts_of = {layer: routed.first_T for layer, routed in trace.layers.items() if layer.startswith(stack)}
        of_layers = information_of_layers(
            experts_of,
            token_factors(trace, stack, words),
            tokens.example_T,
            trace.num_experts,
            constant=frozenset({DOMAIN}),
            permutations=permutations,
            seed=seed,
        )
        found |= {
            layer: {name: asdict(one) for name, one in of_factors.items()} for layer, of_factors in of_layers.items()
        }
    return found


def _decoder_above_encoder(of_layers: Mapping[str, ClassEntropy]) -> Statistics | None:
    compared = decoder_above_encoder(of_layers)
    return None if compared is None else {name: _estimate(one) for name, one in compared.items()}


def _stability(trace: Trace, other: Trace, words: Words, weights_RX: Array) -> Statistics:
    found: Statistics = {}
    for layer, routed in trace.layers.items():
        class_T, tokens = words.labels[layer.partition("_")[0]].class_T, trace.tokens_of(layer)
        first_T, other_T = routed.first_T, other.layers[layer].first_T
        parts = {"all": np.ones(len(first_T), bool)}
        parts |= {name: class_T == number for number, name in enumerate(CLASSES) if (class_T == number).any()}
        found[layer] = {}
        for name, part_T in parts.items():
            one = agreement(first_T[part_T], other_T[part_T], tokens.example_T[part_T], trace.num_experts, weights_RX)
            found[layer][name] = {
                "tokens": one.tokens, "same": _estimate(one.same), "chance": one.chance, "kappa": one.kappa
            }  # fmt: skip
    return found


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "error": estimate.error}
