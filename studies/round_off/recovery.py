"""What becomes of large router logits in training: do the runs reach the quality of those from small logits?

The bar is fixed by the runs from small logits (factor 1, without z-loss, in bf16) alone: their mean validation
cross-entropy plus two sample standard deviations. A run reaches it with a cross-entropy that is not higher. The logits
are back when L_Z of a training step is at most twice that of equal logits, ln(E)².
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from studies.round_off.plan import Start
from studies.round_off.rows import Row
from studies.runner.runs import Result, Run
from studies.runner.statistics import Mean, mean_of
from training.monitoring.columns import training_rows

DEVIATIONS = 2.0
SMALL = Start(1.0, False)
CURVE_POINTS = 25
CURVE_DIGITS = 4  # significant
METRICS = ("cross_entropy", "router_z_loss", "max_router_logit", "dropped_fraction")


@dataclass(frozen=True)
class Recovery:
    """The runs of a variant that ended; means are over those that trained to their last step.

    Attributes:
        start: the variant.
        runs: their number.
        reached: how many are not above the bar; None: there are too few small-logit runs for a bar.
        cross_entropy: of held-out text, nats per target token.
        difference: of the cross-entropy from that of the small-logit run of the same seed.
        logsumexp_square: L_Z of held-out text.
        max_logit: largest router logit there.
        dropped: share of tokens without an expert in the last logged row of training.
        back_at: steps at which the logits were back, of the runs in which they were.
    """

    start: Start
    runs: int
    reached: int | None
    cross_entropy: Mean | None
    difference: Mean | None
    logsumexp_square: Mean | None
    max_logit: Mean | None
    dropped: Mean | None
    back_at: list[int]


def to_rows(outcome: Sequence[tuple[Run, Result]]) -> list[Row]:
    """Return a row per run: settings, figures of held-out text (None if the run is not finished), and its curve."""
    rows = []
    for run, result in outcome:
        model = run.config.architecture()
        curve = [
            {name: row[name] for name in ("step", *METRICS)}
            for row in training_rows(run.folder.rows())
            if all(math.isfinite(row.get(name, math.nan)) for name in METRICS)
        ]
        limit = 2 * math.log(model.num_experts) ** 2
        every = -(-len(curve) // CURVE_POINTS) or 1
        rows.append(
            {
                "variant": run.variant,
                "factor": model.router_initializer_factor,
                "z_loss": model.router_z_coefficient > 0,
                "precision": model.router_precision,
                "seed": run.seed,
                "status": result.status,
                **{name: result.metrics.get(name) for name in METRICS[:3]},
                "dropped_fraction": curve[-1]["dropped_fraction"] if curve else None,
                "back_at": next((row["step"] for row in curve if row["router_z_loss"] <= limit), None),
                "curve": [{name: _rounded(value) for name, value in point.items()} for point in curve[::every]],
            }
        )
    return rows


def start_of(row: Row) -> Start:
    """Return the variant of a row."""
    return Start(row["factor"], row["z_loss"], row["precision"])


def bar_of(rows: Sequence[Row]) -> float | None:
    """Return the cross-entropy that counts as the quality of small logits; None with fewer than two such runs."""
    small = [row["cross_entropy"] for row in _finished(rows, SMALL)]
    return statistics.fmean(small) + DEVIATIONS * statistics.stdev(small) if len(small) > 1 else None


def summarize(rows: Sequence[Row]) -> list[Recovery]:
    """Summarize each variant, in the order of first appearance."""
    bar, small = bar_of(rows), _by_seed(rows, SMALL)
    found = []
    for start in dict.fromkeys(map(start_of, rows)):
        ended = _finished(rows, start)
        runs = sum(start_of(row) == start and row["status"] != "unfinished" for row in rows)
        values = {name: mean_of([row[name] for row in ended]) for name in METRICS}
        pairs = [row["cross_entropy"] - small[row["seed"]] for row in ended if row["seed"] in small]
        found.append(
            Recovery(
                start=start,
                runs=runs,
                reached=None if bar is None else sum(row["cross_entropy"] <= bar for row in ended),
                cross_entropy=values["cross_entropy"],
                difference=mean_of(pairs) if start != SMALL else None,
                logsumexp_square=values["router_z_loss"],
                max_logit=values["max_router_logit"],
                dropped=values["dropped_fraction"],
                back_at=[row["back_at"] for row in ended if row["back_at"] is not None],
            )
        )
    return found


def paired(rows: Sequence[Row], first: Start, second: Start) -> Mean | None:
    """Return the cross-entropy of ``second`` minus that of ``first``, seed by seed; None without a common seed."""
    one, other = _by_seed(rows, first), _by_seed(rows, second)
    return mean_of([other[seed] - one[seed] for seed in one if seed in other])


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{CURVE_DIGITS}g}")


def _finished(rows: Sequence[Row], start: Start) -> list[Row]:
    return [row for row in rows if start_of(row) == start and row["cross_entropy"] is not None]


def _by_seed(rows: Sequence[Row], start: Start) -> dict[int, float]:
    return {row["seed"]: row["cross_entropy"] for row in _finished(rows, start)}
