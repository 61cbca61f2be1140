"""The tables: ours in the paper's shape, with its figures, or what it says in words, beside ours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from studies.finetuning.paper import BY_BATCH, BY_RATE, CAPACITY, SENTINELS, SLOTS, SUBSETS
from studies.finetuning.sources import DENSE, SPARSE
from studies.finetuning.trials import Trial
from studies.finetuning.variants import (
    BATCHES,
    CAPACITIES,
    DROPOUT,
    PARAMETERS,
    START,
    TABLES,
    Variant,
)
from studies.finetuning.variants import (
    SENTINELS as OF_SENTINELS,
)
from studies.results.rows import RUN, Row, of_kind
from studies.results.tables import markdown, number, share, signed
from studies.runner.statistics import Mean, mean_of
from training.monitoring.columns import CROSS_ENTROPY

STARTS = {True: "pretrained, with the optimizer's state", False: "pretrained, without it", None: "random weights"}


class Results:
    """The rows of the trials of one study.

    Args:
        trials: of the study.
        variants: by name.
        rows: of the file of results, of any study.
    """

    def __init__(self, trials: Sequence[Trial], variants: Mapping[str, Variant], rows: Iterable[Row]):
        self.trials = {name: trial for trial in trials for name in trial.names}
        self.variants = {name: variants[name] for name in self.trials}
        self.runs = of_kind(rows, RUN, [trial.key for trial in trials])
        self.unique = [trial for trial in trials if any(row["key"] == trial.key for row in self.runs)]

    def of(self, name: str) -> list[Row]:
        """Return the rows of a variant's runs."""
        return [row for row in self.runs if row["key"] == self.trials[name].key]

    def by_setting(self, table: str, kind: str) -> dict[tuple[Any, ...], list[Row]]:
        """Return the rows of a table by setting, of one kind of model; of settings that have one.

        Nothing where the only one is the base configuration, which is in the first table, too.
        """
        of_table = {v.setting: name for name, v in self.variants.items() if (v.table, v.kind) == (table, kind)}
        found = {setting: rows for setting, name in of_table.items() if (rows := self.of(name))}
        if table == BATCHES:
            return found
        elsewhere = {self.trials[name].key for name, variant in self.variants.items() if variant.table == BATCHES}
        return found if {rows[0]["key"] for rows in found.values()} - elsewhere else {}


def format_tables(results: Results) -> str:
    """Format all tables of which a variant has a row, as Markdown."""
    parts = [*_grid_tables(results), _starts(results), _subsets(results), _capacity(results), *_dropout(results)]
    parts += [_sentinels(results), _tasks(results), _costs(results), _rising(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def score(rows: Sequence[Row]) -> Mean | None:
    """Return the mean score of runs, over tasks and then over runs."""
    return mean_of([row["score"] for row in rows if row["score"] is not None])


def nats(rows: Sequence[Row]) -> Mean | None:
    """Return the mean cross-entropy of the held-out examples."""
    found = [row["validation"].get(CROSS_ENTROPY) for row in rows]
    return mean_of([value for value in found if value is not None])


def means_over(results: Results, kind: str, axis: int) -> dict[Any, Mean]:
    """Return batch size (axis 0) or learning rate (axis 1) → mean score over the other one and over seeds.

    Only settings whose other axis is complete are there, so that means are of the same settings.
    """
    cells = {setting: of for setting, rows in results.by_setting(BATCHES, kind).items() if (of := score(rows))}
    others = {setting[1 - axis] for setting in cells}
    found: dict[Any, Mean] = {}
    for value in {setting[axis] for setting in cells}:
        scores = [of.value for setting, of in cells.items() if setting[axis] == value]
        mean = mean_of(scores)
        if mean is not None and len(scores) == len(others):
            found[value] = mean
    return found


def _grid_tables(results: Results) -> list[str]:
    sparse, dense = (results.by_setting(BATCHES, kind) for kind in (SPARSE, DENSE))
    settings = list(dict.fromkeys([*sparse, *dense]))
    rows = []
    for batch, rate in sorted(settings, key=lambda setting: (setting[0], -setting[1])):
        ours = [cells.get((batch, rate), []) for cells in (sparse, dense)]
        steps = next(of[0]["steps"] for of in ours if of)
        figures = [_score(of) for of in ours] + [_nats(of) for of in ours]
        rows.append([f"{batch:,}", f"{rate:g}", f"{steps:,}", *figures])
    header = [
        "Batch, examples",
        "Learning rate",
        "Steps",
        "Sparse (↑)",
        "Dense (↑)",
        "Sparse, nats (↓)",
        "Dense, nats (↓)",
    ]
    title = f"**{TABLES[BATCHES]}**: mean score of the tasks, and cross-entropy of held-out targets"
    by_batch = _means(results, 0, BY_BATCH, "Batch, examples", "Paper: tokens", largest_first=False)
    by_rate = _means(results, 1, BY_RATE, "Learning rate", "Paper: rate", largest_first=True)
    return [markdown(title, header, rows), by_batch, by_rate]


def _means(
    results: Results,
    axis: int,
    paper: Mapping[Any, Mapping[str, float]],
    label: str,
    theirs: str,
    *,
    largest_first: bool,
) -> str:
    ours = {kind: means_over(results, kind, axis) for kind in (SPARSE, DENSE)}
    values = sorted({*ours[SPARSE], *ours[DENSE]}, reverse=largest_first)
    beside = list(paper.items()) if len(values) == len(paper) else []
    rows = []
    for number_, value in enumerate(values):
        of = [ours[kind].get(value) for kind in (SPARSE, DENSE)]
        difference = mean_of([of[0].value - of[1].value]) if of[0] and of[1] else None
        row = [
            f"{value:,}" if axis == 0 else f"{value:g}",
            *(format_points(mean) for mean in of),
            signed(difference, ".1f"),
        ]
        if beside:
            setting, figures = beside[number_]
            row += [f"{setting:,}" if axis == 0 else f"{setting:g}", f"{figures[SPARSE]}", f"{figures[DENSE]}"]
        rows.append(row)
    header = [label, "Sparse (↑)", "Dense (↑)", "Sparse - dense"]
    header += [theirs, "Paper: sparse", "Paper: dense"] if beside else []
    other = "learning rates" if axis == 0 else "batch sizes"
    return markdown(f"**Means over {other}**, ± standard error over them", header, rows)


def _starts(results: Results) -> str:
    rows = []
    for kind in (SPARSE, DENSE):
        cells = results.by_setting(START, kind)
        for (start,), of in cells.items():
            base = cells.get((True,), []) if start is not True else []
            paper = SLOTS.get(start, "-")
            rows.append([kind, STARTS[start], *_four(of, base), paper])
    return markdown(f"**{TABLES[START]}**", ["Model", "Begins with", *_columns("slots"), "Paper"], rows)


def _subsets(results: Results) -> str:
    cells = results.by_setting(PARAMETERS, SPARSE)
    rows = []
    for (name,), of in cells.items():
        base = cells.get(("all",), []) if name != "all" else []
        sizes = [number(of[0][key], ",") for key in ("parameters_trained", "optimizer_bytes")]
        rows.append([f"`{name}`", *sizes, *_four(of, base), SUBSETS.get(name, "-")])
    header = ["Trained", "Parameters", "Optimizer's state, bytes", *_columns("all"), "Paper"]
    return markdown(f"**{TABLES[PARAMETERS]}**, sparse model", header, rows)


def _capacity(results: Results) -> str:
    rows = []
    for setting, of in results.by_setting(CAPACITIES, SPARSE).items():
        paper = CAPACITY[setting]
        dropped = [
            share(mean_of([row[key] for row in of if row[key] is not None]))
            for key in ("dropped_train", "dropped_eval")
        ]
        theirs = ["-" if paper.share is None else f"{paper.share:.1%}", f"{paper.score}"]
        train, evaluation, balanced = setting
        figures = [_score(of), _nats(of)]
        rows.append([f"{train:g}", f"{evaluation:g}", "yes" if balanced else "no", *dropped, *figures, *theirs])
    header = [
        "Train CF", "Eval CF", "Balance loss", "Dropped, train", "Dropped, eval", "Score (↑)", "Nats (↓)",
        "Paper: dropped", "Paper: score",
    ]  # fmt: skip
    return markdown(f"**{TABLES[CAPACITIES]}**, sparse model", header, rows)


def _dropout(results: Results) -> list[str]:
    cells = results.by_setting(DROPOUT, SPARSE)
    rates, experts = (sorted({setting[axis] for setting in cells}) for axis in (0, 1))
    tables = []
    what: list[tuple[str, Callable[[Sequence[Row]], str]]] = [("mean score (↑)", _score), ("nats (↓)", _nats)]
    for words, figure in what:
        rows = [[f"{rate:g}", *(figure(cells.get((rate, expert), [])) for expert in experts)] for rate in rates]
        header = ["Dropout", *(f"expert dropout {expert:g}" for expert in experts)]
        tables.append(markdown(f"**{TABLES[DROPOUT]}**, sparse model: {words}", header, rows))
    return tables


def _sentinels(results: Results) -> str:
    cells = results.by_setting(OF_SENTINELS, SPARSE)
    rows = []
    for (on,), of in cells.items():
        base = cells.get((False,), []) if on else []
        rows.append(["yes" if on else "no", *_four(of, base)[:2], _nats(of), SENTINELS[on]])
    header = ["Sentinels", "Score (↑)", "Against none", "Nats (↓), the sentinel among the targets", "Paper"]
    return markdown(f"**{TABLES[OF_SENTINELS]}**, sparse model", header, rows)


def _tasks(results: Results) -> str:
    names = list(dict.fromkeys(name for row in results.runs for name in row["tasks"]))
    rows = []
    for trial in results.unique:
        found = [[r["tasks"][name]["score"] for r in results.of(trial.name) if name in r["tasks"]] for name in names]
        rows.append([f"`{trial.name}`", *(format_points(mean_of(scores)) for scores in found)])
    for baseline in dict.fromkeys(
        b for row in results.runs for task in row["tasks"].values() for b in task["baselines"]
    ):
        rows.append([baseline.replace("_", " "), *(baseline_of(results.runs, name, baseline) for name in names)])
    examples = {name: next(r["tasks"][name]["examples"] for r in results.runs if name in r["tasks"]) for name in names}
    header = ["Model", *(f"{name}, {examples[name]:,} examples" for name in names)]
    return markdown("**Score of each task**, and that of what needs no network", header, rows) if names else ""


def baseline_of(runs: Sequence[Row], name: str, baseline: str) -> str:
    """Return the score of a task's baseline, ``-`` where it has none."""
    found = [row["tasks"][name]["baselines"].get(baseline) for row in runs if name in row["tasks"]]
    return next((f"{value:.1f}" for value in found if value is not None), "-")


def _costs(results: Results) -> str:
    rows = []
    for trial in results.unique:
        of = results.of(trial.name)
        first = of[0]
        seconds = [min((r[key] for r in of if r[key]), default=None) for key in ("step_seconds", "processor_seconds")]
        memory = max((r["peak_memory_bytes"] for r in of if r["peak_memory_bytes"]), default=None)
        flops = first["training_flops"] * first["batch"] * first["steps"] / 1e12
        sizes = [number(first[key], ",") for key in ("parameters_total", "parameters_trained", "optimizer_bytes")]
        cells = [f"{flops:,.1f}", *sizes, *(number(s, ".3f") for s in seconds), number(memory and memory / 1e6, ",.0f")]
        rows.append([f"`{trial.name}`", *cells])
    header = [
        "Model", "TFLOP of the run", "Parameters", "Trained", "Optimizer's state, bytes", "Step, s", "Processor, s",
        "Peak memory, MB",
    ]  # fmt: skip
    title = (
        "**What each costs**: FLOPs as if all parameters were trained; the median step of the fastest seed, beside "
        "whatever else the machine did"
    )
    return markdown(title, header, rows)


def _rising(results: Results) -> str:
    lines = [
        f"- `{trial.name}`, seed {row['seed']}, "
        + ("ended" if row["score"] is None else "had a rising training loss, and was evaluated all the same,")
        + f" at step {row['diverged_at']}: {row['reason']}"
        for trial in results.unique
        for row in results.of(trial.name)
        if row["status"] == "diverged"
    ]
    return "\n".join(lines)


def _columns(base: str) -> list[str]:
    return ["Score (↑)", f"Against {base}", "Nats (↓)", f"Against {base}"]


def _four(rows: Sequence[Row], base: Sequence[Row]) -> list[str]:
    """Score and nats, each with its difference to other runs, seed by seed."""
    differences = []
    for figure in (score, nats):
        before = {row["seed"]: of.value for row in base if (of := figure([row]))}
        after = {row["seed"]: of.value for row in rows if (of := figure([row]))}
        differences.append(mean_of([after[seed] - before[seed] for seed in after if seed in before]))
    return [_score(rows), signed(differences[0], ".1f"), _nats(rows), signed(differences[1])]


def _score(rows: Sequence[Row]) -> str:
    return format_points(score(rows)) if rows else "-"


def _nats(rows: Sequence[Row]) -> str:
    return str(nats(rows) or "-")


def format_points(mean: Mean | None) -> str:
    """Return a score and its standard error over seeds, ``-`` for none."""
    if mean is None:
        return "-"
    return f"{mean.value:.1f}" + ("" if mean.error is None else f" ± {mean.error:.1f}")
