"""The pictures of the page, drawn by matplotlib as SVG."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from studies.routing.analysis import Statistics
from studies.routing.trace import stack_of
from training.report.pictures import PALETTE, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, str]  # title, SVG
SIMILARITIES = {"weights": "cosine of weights", "router": "cosine of router vectors", "words": "common words"}
MOST_NUMBERS = 16  # experts up to which a heatmap has numbers


def draw(found: Statistics) -> Iterator[Picture]:
    """Yield the pictures."""
    with style():
        yield "Entropy of the experts of a class, nats; the line is uniform", _entropies(found)
        yield "Mutual information with the first expert, nats, corrected", _information(found)
        for layer, of_layer in found["layers"].items():
            names = [name for name, one in of_layer["entropy"].items() if one["tokens"]]
            rows = [of_layer["class_shares"][name] for name in names]
            rows, names = [*rows, *of_layer["domain_shares"].values()], [*names, *of_layer["domain_shares"]]
            yield f"{layer}: share of a class's tokens that each expert gets", _heatmap(rows, names, "expert")
        for layer, of_layer in found["layers"].items():
            by_expert = list(zip(*of_layer["position_load"], strict=True))
            names = [str(expert) for expert in range(len(by_expert))]
            title = f"{layer}: load of each expert over positions of the text"
            yield title, _heatmap(by_expert, names, "position, sixteenths", numbers=False)
        for layer, of_layer in found["layers"].items():
            for name, one in of_layer["similarity"].items():
                matrix = [
                    [math.nan if row == column else value for column, value in enumerate(values)]
                    for row, values in enumerate(one["matrix"])
                ]
                yield f"{layer}: {SIMILARITIES[name]} of two experts", _matrix(matrix)
        if "stability" in found:
            yield "Tokens that keep their first expert, and chance (line)", _stability(found)


def _entropies(found: Statistics) -> str:
    layers = list(found["layers"])
    names = [
        name for name in found["classes"] if any(found["layers"][layer]["entropy"][name]["tokens"] for layer in layers)
    ]
    figure = _figure(max(4.5, 0.9 * len(layers) + 2.2), 3.4)
    axes = figure.subplots()
    for index, name in enumerate(names):
        ones = [found["layers"][layer]["entropy"][name] for layer in layers]
        places = [place + 0.07 * (index - len(names) / 2) for place, one in enumerate(ones) if one["tokens"]]
        values = [one["experts"]["value"] for one in ones if one["tokens"]]
        errors = [one["experts"]["error"] for one in ones if one["tokens"]]
        axes.errorbar(
            places, values, errors, fmt="o", markersize=4, capsize=2, color=PALETTE[index % len(PALETTE)], label=name
        )
    axes.axhline(found["uniform_entropy"], color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    _layers(axes, layers)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _svg(figure, right=1.3)


def _information(found: Statistics) -> str:
    layers = list(found["layers"])
    factors = list(dict.fromkeys(name for layer in layers for name in found["information"][layer]))
    figure = _figure(max(4.5, 0.9 * len(layers) + 2.2), 3.0)
    axes = figure.subplots()
    width = 0.8 / len(factors)
    for index, name in enumerate(factors):
        ones = [found["information"][layer][name] for layer in layers]
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(layers))]
        axes.bar(places, [max(one["corrected"], 0) for one in ones], width, color=PALETTE[index], label=name)
        axes.plot(places, [one["chance"] for one in ones], "_", color="black", markersize=6)
    _layers(axes, layers)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title="dash: chance")
    return _svg(figure, right=1.3)


def _stability(found: Statistics) -> str:
    of_layers = found["stability"]["layers"]
    figure = _figure(max(4.5, 0.9 * len(of_layers) + 2.2), 3.0)
    axes = figure.subplots()
    names = list(dict.fromkeys(name for of_classes in of_layers.values() for name in of_classes))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        shown = [(place, of[name]) for place, of in enumerate(of_layers.values()) if name in of]
        places = [place - 0.4 + width * (index + 0.5) for place, _ in shown]
        color = PALETTE[index % len(PALETTE)]
        errors = [one["same"]["error"] for _, one in shown]
        axes.bar(places, [one["same"]["value"] for _, one in shown], width, yerr=errors, color=color, label=name)
        axes.plot(places, [one["chance"] for _, one in shown], "_", color="black", markersize=6)
    axes.set_ylim(0, 1)
    _layers(axes, list(of_layers))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _svg(figure, right=1.3)


def _layers(axes: Any, layers: Sequence[str]) -> None:
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    stacks = [stack_of(layer) for layer in layers]
    for place in range(1, len(stacks)):
        if stacks[place] != stacks[place - 1]:
            axes.axvline(place - 0.5, color="gray", linewidth=0.6)


def _heatmap(rows: Sequence[Sequence[float]], names: Sequence[str], axis: str, *, numbers: bool = True) -> str:
    columns = len(rows[0])
    figure = _figure(min(12.0, max(3.2, 1.6 + 0.3 * columns)), max(1.6, 0.9 + 0.24 * len(rows)), left=1.1)
    axes = figure.subplots()
    image = axes.imshow(rows, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(axis)
    axes.grid(visible=False)
    if numbers and columns <= MOST_NUMBERS:
        most = max(max(values) for values in rows)
        for row, values in enumerate(rows):
            for column, value in enumerate(values):
                ink = "white" if value > 0.6 * most else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(image, ax=axes)
    return _svg(figure, right=0.3)


def _matrix(matrix: Sequence[Sequence[float]]) -> str:
    size = min(5.0, max(2.2, 1.2 + 0.12 * len(matrix)))
    figure = _figure(size + 1.0, size)
    axes = figure.subplots()
    largest = max((abs(value) for values in matrix for value in values if math.isfinite(value)), default=1.0)
    signed = any(value < 0 for values in matrix for value in values)
    colors: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -largest} if signed else {"cmap": "Reds", "vmin": 0}
    image = axes.imshow(matrix, vmax=largest, interpolation="nearest", **colors)
    axes.grid(visible=False)
    axes.set_xlabel("expert")
    figure.colorbar(image, ax=axes)
    return _svg(figure, right=0.5)


def _figure(width: float, height: float, left: float = 0.5) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, 0.45 / height, 1 - 0.1 / width, 1 - 0.12 / height)
    return figure


def _svg(figure: "Figure", right: float = 0.0) -> str:
    if right:
        figure.subplots_adjust(right=1 - right / figure.get_figwidth())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
