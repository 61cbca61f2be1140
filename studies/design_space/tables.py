"""The tables: ours in the paper's shape, its figures beside ours, and what each choice costs."""

from collections.abc import Iterable, Sequence

from common.text import counted
from studies.design_space.evaluate import FACTOR
from studies.design_space.pareto import Point
from studies.design_space.trials import Trial
from studies.design_space.variants import BASELINE, TABLES, VARIANTS, Variant
from studies.results.rows import RUN, TIME, Row, of_kind, quietest
from studies.results.tables import number, share, signed
from studies.runner.statistics import Mean, mean_of
from training.monitoring.columns import CROSS_ENTROPY, DROPPED_FRACTION

QUALITY_HEADER = (
    "| Model | Eval CF | Seeds | Quality (↑) | Against baseline | Dropped, train | Dropped, eval | Paper |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
COST_HEADER = (
    "| Model | MFLOPs of a token | Parameters | Active | Step, s | Processor, s | Peak memory, MB |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)
TIME_HEADER = (
    "| Model | Step, ms | Median | Of baseline | Processor, ms | Peak memory, MB |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


class Results:
    """The rows of the trials of one base configuration.

    Args:
        trials: of the study.
        rows: of the file of results, of any study.
    """

    def __init__(self, trials: Sequence[Trial], rows: Iterable[Row]):
        rows = list(rows)
        keys = [trial.key for trial in trials]
        self.trials = {name: trial for trial in trials for name in trial.names}
        self.runs = of_kind(rows, RUN, keys)
        self.times = quietest(of_kind(rows, TIME, keys))
        self.unique = [t for t in trials if any(row["key"] == t.key for row in self.runs)]

    def of(self, name: str) -> list[Row]:
        """Return the rows of a variant's runs, stable and diverged; none if it is no trial of this base."""
        trial = self.trials.get(name)
        return [] if trial is None else [row for row in self.runs if row["key"] == trial.key]

    def qualities(self, name: str, factor: float | None = None) -> dict[int, float]:
        """Return seed → negative log perplexity of a variant's stable runs at a capacity factor, None: its own."""
        found = {}
        for row in self.of(name):
            at = row["own_factor"] if factor is None else factor
            for evaluation in row["evaluations"]:
                if row["status"] == "stable" and evaluation[FACTOR] == at and evaluation[CROSS_ENTROPY] is not None:
                    found[row["seed"]] = -evaluation[CROSS_ENTROPY]
        return found

    def against_baseline(self, name: str, factor: float | None = None) -> Mean | None:
        """Return the mean difference of quality to the baseline at its own capacity factor, seed by seed."""
        ours, base = self.qualities(name, factor), self.qualities(BASELINE)
        return mean_of([ours[seed] - base[seed] for seed in ours if seed in base])

    def time_of(self, name: str) -> list[Row]:
        """Return the measurements of a variant's steps."""
        trial = self.trials.get(name)
        return [] if trial is None else [row for row in self.times if row["key"] == trial.key]


def format_tables(results: Results) -> str:
    """Format all tables of which a variant has a row, as Markdown."""
    parts = [_quality_table(results, table) for table in TABLES]
    parts += [_domain_table(results), _cost_table(results), *_time_tables(results), _diverged(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def points(results: Results) -> dict[str, list[Point]]:
    """Return the panels of the Pareto picture: label of the cost → points.

    Steps that were timed in turn take the place of those of the runs, which shared the machine with others.
    """
    flops = "counted MFLOPs per token, forward and backward"
    of_runs = {"processor time per token in training, µs": "processor_seconds"}
    if not results.times:
        of_runs["step time per token in training, µs"] = "step_seconds"
    panels: dict[str, list[Point]] = {}
    steps = results.unique[0].config.training.steps if results.unique else 0
    for trial in results.unique:
        quality = mean_of(list(results.qualities(trial.name).values()))
        if quality is None or trial.config.training.steps != steps:  # a longer run has another cost altogether
            continue
        rows = [row for row in results.of(trial.name) if row["status"] == "stable"]
        costs = {flops: rows[0]["training_flops_of_token"] / 1e6}
        for label, key in of_runs.items():
            found = [1e6 * row[key] / row["tokens_per_step"] for row in rows if row[key] and row["tokens_per_step"]]
            costs |= {label: min(found)} if found else {}
        for row in results.time_of(trial.name):
            label = f"fastest timed step per token, µs ({row['device']})"
            costs[label] = 1e6 * row["step_seconds"] / row["tokens_per_step"]
        for label, cost in costs.items():
            panels.setdefault(label, []).append(Point(trial.name, cost, quality.value, quality.error or 0.0))
    return panels


def _quality_table(results: Results, table: str) -> str:
    names = [name for name, v in VARIANTS.items() if v.table == table and name != BASELINE and results.of(name)]
    base = results.trials.get(BASELINE)
    same = [name for name in names if base is not None and name in base.names]
    others = [name for name in names if name not in same]
    if not others:
        return ""
    lines = []
    if results.of(BASELINE):
        merged = _merged(table, same)
        lines += _quality_rows(results, BASELINE, merged)
    for name in sorted(others, key=list(VARIANTS).index):
        lines += _quality_rows(results, name, VARIANTS[name])
    return "\n".join([f"**{TABLES[table]}**", "", QUALITY_HEADER, *lines])


def _merged(table: str, same: Sequence[str]) -> Variant:
    """Return the baseline as a variant of a table, with the title and the figures of the setting that it has there."""
    base = VARIANTS[BASELINE]
    title = ": ".join([base.title, *(VARIANTS[name].title for name in same)])
    factors = base.factors if base.table == table else tuple(f for name in same for f in VARIANTS[name].factors)
    paper = {factor: value for name in same for factor, value in VARIANTS[name].paper.items()}
    return Variant(title, table, base.change, factors, paper)


def _quality_rows(results: Results, name: str, variant: Variant) -> list[str]:
    rows = results.of(name)
    own = rows[0]["own_factor"]
    factors = sorted({*variant.factors}) or [own]
    dropped = mean_of([row["dropped_train"] for row in rows if row["dropped_train"] is not None])
    lines = []
    for factor in factors:
        found = results.qualities(name, factor)
        quality = mean_of(list(found.values()))
        if quality is None and factor != factors[0]:
            continue
        evaluations = [e for row in rows for e in row["evaluations"] if e[FACTOR] == factor]
        dropped_eval = mean_of([e[DROPPED_FRACTION] for e in evaluations])
        paper = variant.paper.get(factor, variant.paper.get(None))
        against = results.against_baseline(name, factor)
        is_itself = name == BASELINE and factor == own
        difference = "-" if against is None or is_itself else signed(against)
        lines.append(
            f"| {variant.title} | {factor:g} | {len(found)}/{len(rows)} | {quality or 'diverged'} "
            f"| {difference} | {share(dropped)} | {share(dropped_eval)} "
            f"| {'-' if paper is None else f'{paper:.3f}'} |"
        )
    return lines


def _domain_table(results: Results) -> str:
    prefix = f"{CROSS_ENTROPY}/"
    domains = sorted(
        {k[len(prefix) :] for r in results.runs for e in r["evaluations"] for k in e if k.startswith(prefix)}
    )
    if not domains:
        return ""
    lines = []
    for trial in results.unique:
        figures = []
        for domain in domains:
            values = [
                -e[prefix + domain]
                for row in results.of(trial.name)
                for e in row["evaluations"]
                if row["status"] == "stable" and e[FACTOR] == row["own_factor"] and e.get(prefix + domain) is not None
            ]
            figures.append(str(mean_of(values) or "-"))
        lines.append(f"| `{trial.name}` | {' | '.join(figures)} |")
    header = [f"| Model | {' | '.join(domains)} |", f"| --- |{' --- |' * len(domains)}"]
    return "\n".join(["**Quality by domain**, at the configuration's capacity factor", "", *header, *lines])


def _cost_table(results: Results) -> str:
    lines = []
    for trial in results.unique:
        rows = results.of(trial.name)
        first = rows[0]
        seconds = [min((r[key] for r in rows if r[key]), default=None) for key in ("step_seconds", "processor_seconds")]
        memory = max((r["peak_memory_bytes"] for r in rows if r["peak_memory_bytes"]), default=None)
        lines.append(
            f"| `{trial.name}` | {first['training_flops_of_token'] / 1e6:.3f} | {first['parameters_total']:,} "
            f"| {first['parameters_active']:,} | {number(seconds[0], '.3f')} | {number(seconds[1], '.3f')} "
            f"| {number(memory and memory / 1e6, ',.0f')} |"
        )
    title = "**What each costs in training**: the median step of the fastest seed, beside whatever else the machine did"
    return "\n".join([title, "", COST_HEADER, *lines]) if lines else ""


def _time_tables(results: Results) -> list[str]:
    tables = []
    for device, threads in sorted({(row["device"], row["threads"] or 0) for row in results.times}):
        here = {row["key"]: row for row in results.times if (row["device"], row["threads"] or 0) == (device, threads)}
        named = {t.name: here[t.key] for t in results.trials.values() if t.key in here}
        base = named.get(BASELINE)
        lines = []
        for name, row in named.items():
            ratio = None if base is None else row["step_seconds"] / base["step_seconds"]
            memory = row["peak_memory_bytes"]
            lines.append(
                f"| `{name}` | {1e3 * row['step_seconds']:.1f} | {1e3 * row['median_seconds']:.1f} "
                f"| {number(ratio, '.3f')} | {1e3 * row['processor_seconds']:.1f} "
                f"| {number(memory and memory / 1e6, ',.0f')} |"
            )
        first = next(iter(named.values()))
        of_threads = f", {counted(threads, 'thread')}" if threads else ""
        title = (
            f"**Steps timed in turn** on {device}{of_threads}: the fastest and the "
            f"median of {first['rounds']} rounds of {first['steps']} steps, at a load average of "
            f"{first['load_average']}; the paper: capacity factor 2.0 takes 1.021 times as long as 1.25 (L), "
            "1.135 times (32B)"
        )
        tables.append("\n".join([title, "", TIME_HEADER, *lines]))
    return tables


def _diverged(results: Results) -> str:
    lines = [
        f"- `{trial.name}`, seed {row['seed']}, diverged at step {row['diverged_at']}: {row['reason']}"
        for trial in results.unique
        for row in results.of(trial.name)
        if row["status"] == "diverged"
    ]
    return "\n".join(lines)
