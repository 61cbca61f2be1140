"""The page of the round-off study: tables and pictures, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import write_atomically
from studies.round_off.laws import paper_example
from studies.round_off.measure import LAW, precision_of
from studies.round_off.recovery import DEVIATIONS, Recovery
from studies.round_off.rows import Row

FIGURES = ("flips_first", "flips_second", "gate_error", "gate_error_max", "output_error")
TABLES = {
    "flips_first": "share of tokens whose first expert flips",
    "flips_second": "share of tokens whose second expert flips",
    "gate_error": "mean error of the gates",
    "output_error": "relative error of the output",
}
IN_TABLE = ("fp32", "softmax_input", LAW, "operands", "router", "selective", "everything")


def write_page(
    random: Sequence[Row],
    trained: Mapping[str, Sequence[Row]],
    recoveries: Sequence[Recovery],
    bar: float | None,
    path: Path,
) -> None:
    """Write the page, beside its pictures ``round_off.png`` and ``recovery.png``.

    Args:
        random: rows of ``measure_layer`` of random tokens, of all draws.
        trained: rows of ``measure_run`` by run.
        recoveries: of each variant that was trained; none without training.
        bar: see ``recovery.bar_of``.
        path: of the file.
    """
    parts = ["# Round-off in routers", example(), "![errors over the size of the logits](round_off.png)"]
    parts += [scale_tables(random), offset_table(random)]
    if trained:
        parts += [trained_table(trained), cross_entropy_table(trained)]
    if recoveries:
        parts += [recovery_table(recoveries, bar), "![training from large logits](recovery.png)"]
    write_atomically(path, "\n\n".join(parts) + "\n")


def example() -> str:
    """Return the paper's example in words."""
    exact, rounded = paper_example()
    return (
        f"Ten logits of 128 and one of 128.5: the softmax gives the latter {exact:.4f}. In bf16 128.5 becomes 128, and "
        f"it gets {rounded:.4f}, {1 - rounded / exact:.0%} less (the paper's example, section 3.4)."
    )


def scale_tables(random: Sequence[Row]) -> str:
    """Format a table per figure over the factor of the router's weights, means over the draws of random tokens."""
    rows = [row for row in random if row["offset"] == 0]
    tables = []
    for key, title in TABLES.items():
        lines = [
            f"**Random tokens, initial router weights x factor: {title}**", "",
            f"| factor | largest logit | logsumexp² | {' | '.join(map(_title, IN_TABLE))} |",
            "| --- " * (3 + len(IN_TABLE)) + "|",
        ]  # fmt: skip
        for factor in dict.fromkeys(row["factor"] for row in rows):
            of = [row for row in rows if row["factor"] == factor]
            cells = [[row for row in of if row["precision"] == name] for name in IN_TABLE]
            figures = [f"{_mean(cell, key):.2g}" if cell and key in cell[0] else "-" for cell in cells]
            sizes = f"{_mean(of, 'max_abs_logit'):.1f} | {_mean(of, 'logsumexp_square'):.1f}"
            lines.append(f"| {factor:g} | {sizes} | {' | '.join(figures)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def offset_table(random: Sequence[Row]) -> str:
    """Format the errors over a number that is added to all logits."""
    rows = [row for row in random if row["precision"] in ("softmax_input", LAW)]
    factor = next(row["factor"] for row in rows if row["offset"])
    rows = [row for row in rows if row["factor"] == factor]
    lines = [
        f"**Random tokens: initial router weights x {factor:g}, all logits + offset; the softmax's input in bf16**", "",
        "| offset | logsumexp² | | first expert flips | second | gate error | largest | output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for offset in dict.fromkeys(row["offset"] for row in rows):
        for name in ("softmax_input", LAW):
            of = [row for row in rows if (row["offset"], row["precision"]) == (offset, name)]
            if of:
                square = f"{_mean(of, 'logsumexp_square'):.1f}"
                label = "law" if name == LAW else "measured"
                lines.append(f"| {offset:g} | {square} | {label} | {_figures(of)} |")
    return "\n".join(lines)


def trained_table(trained: Mapping[str, Sequence[Row]]) -> str:
    """Format the errors of trained routers on real activations."""
    lines = [
        "**Trained routers on held-out text**", "",
        "| run | layer | largest logit | mean | logsumexp² | in bf16 | first expert flips | second | gate error "
        "| largest | output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for run, rows in trained.items():
        for row in rows:
            if "layer" in row and row["factor"] == 1 and not row["offset"] and row["precision"] in IN_TABLE:
                sizes = f"{row['max_abs_logit']:.1f} | {row['mean_abs_logit']:.2f} | {row['logsumexp_square']:.1f}"
                lines.append(f"| {run} | {row['layer']} | {sizes} | {_title(row['precision'])} | {_figures([row])} |")
    return "\n".join(lines)


def cross_entropy_table(trained: Mapping[str, Sequence[Row]]) -> str:
    """Format the cross-entropy of trained models in several precisions, as differences from fp32."""
    lines = [
        "**Cross-entropy of trained models, routers' weights x factor: nats more than in fp32**", "",
        "| run | factor | fp32 | router in bf16 | all but the router | everything |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for run, rows in trained.items():
        of = [row for row in rows if "cross_entropy" in row]
        for factor in dict.fromkeys(row["factor"] for row in of):
            values = {row["precision"]: row["cross_entropy"] for row in of if row["factor"] == factor}
            found = [values.get(name) for name in ("router", "selective", "everything")]
            cells = ["-" if value is None else f"{value - values['fp32']:+.5f}" for value in found]
            lines.append(f"| {run} | {factor:g} | {values['fp32']:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recovery_table(recoveries: Sequence[Recovery], bar: float | None) -> str:
    """Format what became of each variant."""
    heading = "**Training from large router logits**"
    if bar is not None:
        heading += f" (bar: {bar:.4f}, the mean of small logits without z-loss + {DEVIATIONS:g} standard deviations)"
    lines = [
        heading, "",
        "| router weights | z-loss | router | reach the bar | validation cross-entropy | than small logits "
        "| logsumexp² | largest logit | tokens dropped | logits back |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for r in recoveries:
        reached = "-" if r.reached is None else f"{r.reached}/{r.runs}"
        back = f"{len(r.back_at)}/{r.runs}" + (f", step {statistics.median(r.back_at):g}" if r.back_at else "")
        lines.append(
            f"| x {r.start.factor:g} | {'yes' if r.start.z_loss else 'no'} | {r.start.precision} | {reached} "
            f"| {r.cross_entropy or '-'} | {r.difference or '-'} | {r.logsumexp_square or '-'} | {r.max_logit or '-'} "
            f"| {r.dropped or '-'} | {back} |"
        )
    return "\n".join(lines)


def _title(name: str) -> str:
    return "law for the softmax's input" if name == LAW else precision_of(name).title


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def _figures(rows: Sequence[Row]) -> str:
    return " | ".join(f"{_mean(rows, key):.2g}" if all(key in row for row in rows) else "-" for key in FIGURES)
