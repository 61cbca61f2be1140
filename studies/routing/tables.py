"""The statistics as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from studies.routing.analysis import Statistics
from studies.routing.trace import stack_of

# Entropy of the sentinels' experts, nats, of ST-MoE-L's six sparse layers of each stack, with 32 experts; ln 32 = 3.47.
PAPER = {"encoder": (2.2, 1.8, 1.6, 1.7, 1.7, 1.2), "decoder": (3.4, 3.4, 3.4, 3.4, 3.4, 3.4)}
BEST = 3  # experts of a class


def to_markdown(found: Statistics) -> str:
    """Return all tables."""
    parts = [
        "# Which tokens go to which expert",
        introduction(found),
        verdict(found),
        "## Entropy of the experts of a class",
        "First choices, nats, with the standard error over resamples of the examples. In brackets the mean entropy of "
        f"the router's probabilities. Uniform over {found['experts']} experts: {found['uniform_entropy']:.2f}.",
        entropy_table(found),
        "## Mutual information of the first expert with what the token is",
        f"Nats, corrected for the number of tokens, and as a share of the experts' entropy; chance is the mean of "
        f"{found['permutations']} permutations, p their test.",
        information_table(found),
        "## Experts of each class",
        f"The {BEST} experts that get the largest shares of the class's tokens.",
        shares_table(found),
        "## Words of each expert",
        "First choices; the share of the word's tokens that the expert gets. Only words beyond chance, see "
        "`studies/routing/experts.py`.",
        *(words_table(found, layer) for layer in found["layers"]),
        "## How alike two experts are",
        "Over all pairs of a layer. Weights and router: cosine. Words: common part of the words that they get.",
        similarity_table(found),
        "## The routers",
        router_table(found),
    ]
    if "stability" in found:
        parts += [
            "## Tokens that keep their first expert",
            f"Against {found['stability']['against']}. kappa: 0 is chance, 1 all tokens.",
            stability_table(found),
        ]
    return "\n\n".join(parts) + "\n"


def introduction(found: Statistics) -> str:
    """Return what was measured."""
    texts = ", ".join(f"{name} ({count:,})" for name, count in found["domains"].items())
    tokens = " and ".join(f"{count:,} {stack}" for stack, count in found["tokens"].items())
    return (
        f"{found['model']}: {found['examples']:,} examples of {texts}; {tokens} tokens; {found['experts']} experts. "
        f"{found['routing']}"
    )


def verdict(found: Statistics) -> str:
    """Return in one sentence whether the decoder's entropy of sentinels is above the encoder's."""
    compared = found["decoder_above_encoder"]["sentinel"]
    if compared is None:
        return "Sentinels: not in both stacks of this model, or not in this text."
    encoder, decoder, difference = (compared[key] for key in ("encoder", "decoder", "difference"))
    clear = abs(difference["value"]) > 2 * difference["error"]
    side = "above" if difference["value"] > 0 else "below"
    size = difference | {"value": abs(difference["value"])}
    return (
        f"Sentinels, mean over layers: decoder {measured(decoder)}, encoder {measured(encoder)} nats; the decoder's is "
        f"{'' if clear else 'not clearly '}{side} the encoder's, by {measured(size)}. "
        f"The paper: encoder {', '.join(map(str, PAPER['encoder']))}, decoder {PAPER['decoder'][0]} in all six layers, "
        "of 3.47."
    )


def entropy_table(found: Statistics) -> str:
    """Return entropies, classes x layers."""
    layers = list(found["layers"])
    rows = []
    for name in _classes_in(found):
        of_layers = [found["layers"][layer]["entropy"][name] for layer in layers]
        counts = {stack_of(layer): one["tokens"] for layer, one in zip(layers, of_layers, strict=True)}
        cells = [
            f"{measured(one['experts'])} ({one['router']['value']:.2f})" if one["tokens"] else "-" for one in of_layers
        ]
        rows.append([name, " / ".join(f"{count:,}" for count in counts.values()), *cells])
    stacks = " / ".join(dict.fromkeys(map(stack_of, layers)))
    return table(["class", f"tokens, {stacks}", *layers], rows)


def information_table(found: Statistics) -> str:
    """Return mutual information, factors x layers."""
    layers = list(found["layers"])
    factors = list(dict.fromkeys(name for layer in layers for name in found["information"][layer]))
    rows = []
    for name in factors:
        cells = []
        for layer in layers:
            one = found["information"][layer][name]
            share = one["corrected"] / one["of_expert"] if one["of_expert"] else 0.0
            cells.append(
                f"{one['corrected']:.3f} ({100 * share:.0f} %), chance {one['chance']:.3f}, p {_p(one, found)}"
            )
        rows.append([name, *cells])
    return table(["factor", *layers], rows)


def shares_table(found: Statistics) -> str:
    """Return the experts with the largest shares of each class and, where there are several, each domain."""
    layers = list(found["layers"])
    rows = [["all tokens", *(best_experts(found["layers"][layer]["load"]) for layer in layers)]]
    for kind, names in (("class_shares", _classes_in(found)), ("domain_shares", list(found["domains"]))):
        for name in names:
            of_layers = [found["layers"][layer][kind].get(name) for layer in layers]
            if any(shares is not None for shares in of_layers):
                title = name if kind == "class_shares" else f"domain {name}"
                rows.append([title, *(best_experts(shares) if shares and sum(shares) else "-" for shares in of_layers)])
    return table(["", *layers], rows)


def best_experts(shares: Sequence[float]) -> str:
    """Return the experts with the largest shares, as ``3: 41 %, 0: 20 %``."""
    best = sorted(range(len(shares)), key=lambda expert: -shares[expert])[:BEST]
    return ", ".join(f"{expert}: {100 * shares[expert]:.0f} %" for expert in best)


def words_table(found: Statistics, layer: str) -> str:
    """Return load, main classes and words of every expert of a layer."""
    of_layer = found["layers"][layer]
    tokens = {name: one["tokens"] for name, one in of_layer["entropy"].items()}
    rows = []
    for expert, load in enumerate(of_layer["load"]):
        counts = {name: of_layer["class_shares"][name][expert] * count for name, count in tokens.items() if count}
        total = sum(counts.values()) or 1.0
        main = sorted(counts, key=lambda name: -counts[name])[:2] if sum(counts.values()) else []
        classes = ", ".join(f"{name} {100 * counts[name] / total:.0f} %" for name in main)
        words = ", ".join(f"{code(word['text'])} {100 * word['of_word']:.0f} %" for word in of_layer["words"][expert])
        rows.append([str(expert), f"{100 * load:.1f} %", classes or "-", words or "-"])
    return f"**{layer}**\n\n" + table(["expert", "load", "its tokens", "words"], rows)


def similarity_table(found: Statistics) -> str:
    """Return the mean and the largest similarity of each kind."""
    rows = []
    for layer, of_layer in found["layers"].items():
        similar = of_layer["similarity"]
        rows.append([layer, *(f"{_number(one['mean'])}, {_number(one['largest'])}" for one in similar.values())])
    return table(["mean, largest", "weights", "router", "words"], rows)


def router_table(found: Statistics) -> str:
    """Return means over all tokens."""
    columns = {
        "entropy": "entropy of probabilities, nats",
        "logsumexp": "logsumexp of logits",
        "largest_logsumexp": "largest",
        "first_gate": "gate of the first choice",
        "unserved": "tokens without an expert",
    }
    rows = [
        [layer, *(_number(of_layer["router"][key]) for key in columns)] for layer, of_layer in found["layers"].items()
    ]
    return table(["", *columns.values()], rows)


def stability_table(found: Statistics) -> str:
    """Return agreement with the other checkpoint, classes x layers."""
    of_layers = found["stability"]["layers"]
    rows = []
    for name in ("all", *_classes_in(found)):
        ones = [of_classes.get(name) for of_classes in of_layers.values()]
        cells = [
            f"{percent(one['same'])}, chance {100 * one['chance']:.0f} %, kappa {_number(one['kappa'])}" if one else "-"
            for one in ones
        ]
        rows.append([name, *cells])
    return table(["class", *of_layers], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Return a word as inline code that cannot end the cell or the code."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def measured(estimate: dict[str, float]) -> str:
    """Return a figure with its error."""
    return f"{_number(estimate['value'])} ± {_number(estimate['error'])}"


def percent(estimate: dict[str, float]) -> str:
    """Return a share with its error."""
    if not math.isfinite(estimate["error"]):
        return f"{100 * estimate['value']:.1f} %"
    return f"{100 * estimate['value']:.1f} ± {100 * estimate['error']:.1f} %"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _p(one: dict[str, Any], found: Statistics) -> str:
    least = 1 / (1 + found["permutations"])
    return f"≤ {least:.3f}" if one["p_value"] <= least else f"{one['p_value']:.3f}"


def _classes_in(found: Statistics) -> list[str]:
    """The classes that have tokens in some layer."""
    return [
        name
        for name in found["classes"]
        if any(of_layer["entropy"][name]["tokens"] for of_layer in found["layers"].values())
    ]
