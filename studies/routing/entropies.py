"""The entropy of the experts to which the tokens of a class go, as in tables 13-15 of the paper, with error bars.

For the tokens of a class, the entropy of the shares of their first experts, nats: ln(experts) if all experts get as
many, 0 if one gets all. A finite number T of tokens gives too little by about (K - 1) / (2 T), K experts that occur;
that much is added (Miller 1955), at most up to ln(experts).

Errors are standard deviations over bootstrap resamples of whole examples, since the tokens of an example are no
independent draws. All layers and classes share the resamples, so that differences have their errors too.

Shape suffixes: T = tokens, X = examples, C = classes, E = experts, R = resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.routing.trace import Array

RESAMPLES = 200


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, and the figure of each resample."""

    value: float
    resampled_R: Array

    @property
    def error(self) -> float:
        """Standard deviation over the resamples that have the figure."""
        known = self.resampled_R[np.isfinite(self.resampled_R)]
        return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


@dataclass(frozen=True)
class ClassEntropy:
    """The experts of one class in one layer."""

    tokens: int
    experts: Estimate  # entropy of the shares of first experts, nats
    router: Estimate  # mean entropy of the router's probabilities, nats


def resamples(examples: int, count: int = RESAMPLES, seed: int = 0) -> Array:
    """Return how often each resample has each example, float64 ``[R, X]``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(examples, np.full(examples, 1 / examples), size=count).astype(np.float64)


def class_entropies(
    first_T: Array,
    router_entropy_T: Array,
    class_T: Array,
    example_T: Array,
    *,
    experts: int,
    classes: int,
    weights_RX: Array,
) -> list[ClassEntropy]:
    """Return the entropies of every class in one layer.

    Args:
        first_T: first expert of each token; -1: none, the token is not counted.
        router_entropy_T: of the router's probabilities, nats.
        class_T: of each token, from 0 to ``classes`` - 1.
        example_T: of each token.
        experts: E.
        classes: C.
        weights_RX: see ``resamples``.
    """
    chosen_T = first_T >= 0
    first_T, class_T, example_T = first_T[chosen_T], class_T[chosen_T], example_T[chosen_T]
    examples = weights_RX.shape[1]
    cell_T = example_T.astype(np.int64) * classes + class_T
    counts_XCE = np.bincount(cell_T * experts + first_T, minlength=examples * classes * experts)
    counts_XCE = counts_XCE.reshape(examples, classes * experts).astype(np.float64)
    sums_XC = np.bincount(cell_T, router_entropy_T[chosen_T], minlength=examples * classes).reshape(examples, classes)

    whole_1X = np.ones((1, examples))
    found = []
    for weights in (whole_1X, weights_RX):
        counts_RCE = (weights @ counts_XCE).reshape(len(weights), classes, experts)
        tokens_RC = counts_RCE.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((tokens_RC, corrected_entropy(counts_RCE), weights @ sums_XC / tokens_RC))
    (tokens_1C, entropy_1C, router_1C), (_, entropy_RC, router_RC) = found
    return [
        ClassEntropy(
            int(tokens_1C[0, c]),
            Estimate(float(entropy_1C[0, c]), entropy_RC[:, c]),
            Estimate(float(router_1C[0, c]), router_RC[:, c]),
        )
        for c in range(classes)
    ]


def corrected_entropy(counts_E: Array) -> Array:
    """Return entropies of relative frequencies over the last axis, nats, with Miller's correction; NaN of nothing."""
    total = counts_E.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        n_log_n = np.where(counts_E > 0, counts_E * np.log(np.where(counts_E > 0, counts_E, 1)), 0.0).sum(-1)
        plain = np.log(total) - n_log_n / total
        corrected = plain + (np.count_nonzero(counts_E, axis=-1) - 1) / (2 * total)
    result: Array = np.minimum(corrected, np.log(counts_E.shape[-1]))
    return result


def mean_of_layers(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over layers, resample by resample."""
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.resampled_R for estimate in estimates], axis=0),
    )


def decoder_above_encoder(of_layers: Mapping[str, ClassEntropy]) -> dict[str, Estimate] | None:
    """Compare the entropies of one class in the two stacks, means over their layers; None if one has no tokens.

    Returns:
        ``encoder``, ``decoder`` and their ``difference``, decoder - encoder.
    """
    stacks = {
        stack: [entropy.experts for layer, entropy in of_layers.items() if layer.startswith(stack) and entropy.tokens]
        for stack in ("encoder", "decoder")
    }
    if not all(stacks.values()):
        return None
    encoder, decoder = (mean_of_layers(stacks[stack]) for stack in ("encoder", "decoder"))
    difference = Estimate(decoder.value - encoder.value, decoder.resampled_R - encoder.resampled_R)
    return {"encoder": encoder, "decoder": decoder, "difference": difference}
