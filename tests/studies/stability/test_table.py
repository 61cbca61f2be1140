"""Statistics, tables and report on results worked by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from studies.plots import plot_sweep
from studies.runner.divergence import Verdict
from studies.runner.runs import Result, Run
from studies.runner.statistics import mean_of, summarize
from studies.stability.pairs import pairs
from studies.stability.report import least_stable_fraction, write_report
from studies.stability.table import format_tables, to_rows
from studies.z_loss_sweep import format_sweep

STABLE, UNSTABLE = Verdict(None, "", 0), Verdict(5, "more than 0.5 nats above 4.00 for 5% of the steps", 1)


def result(variant: str, seed: int, quality: float | None, *, stable: bool = True, z: float = 4.0) -> Result:
    status = "unfinished" if quality is None else "stable" if stable else "diverged"
    metrics = {} if quality is None else {"cross_entropy": -quality, "router_z_loss": z, "max_router_logit": 2.0}
    return Result(variant, seed, status, STABLE if stable else UNSTABLE, quality, metrics)  # type: ignore[arg-type]


# Baseline: qualities -4.0 and -4.2, mean -4.1, standard error 0.1414 / sqrt(2) = 0.1; two diverged, one is unfinished.
RESULTS = [
    result("baseline", 0, -4.0),
    result("baseline", 1, -4.2),
    result("baseline", 2, -9.0, stable=False),
    result("baseline", 3, -9.0, stable=False),
    result("baseline", 4, None),
    result("router_z_loss", 0, -4.01, z=0.5),
    result("router_z_loss", 1, -4.19, z=0.25),
    result("dropout", 0, -4.5),
]


def test_mean_and_standard_error():
    mean = mean_of([-4.0, -4.2])
    assert mean is not None
    assert (mean.value, mean.error) == (pytest.approx(-4.1), pytest.approx(0.1))
    assert str(mean) == "-4.100 ± 0.100"
    assert str(mean_of([-4.5])) == "-4.500"
    assert mean_of([]) is None


def test_diverged_and_unfinished_runs_are_not_in_the_means():
    summary = summarize(RESULTS[:5])
    assert (summary.runs, summary.over, summary.stable, summary.spikes) == (5, 4, 2, 2)
    assert summary.fraction == "2/4 (1 unfinished)"
    assert str(summary.quality) == "-4.100 ± 0.100"


def test_tables_have_the_papers_figures_beside_ours():
    lines = format_tables(RESULTS).splitlines()
    baseline = "| Baseline | 2/4 (1 unfinished) | -4.100 ± 0.100 | 4/6 | -1.755 ± 0.02 |"
    assert lines.count(baseline) == 2  # of tables 3 and 4: no variant of table 2 was run
    assert "| Dropout (0.1) | 1/1 | -4.500 | 3/3 | -1.822 ± 0.11 |" in lines
    assert "| Router z-loss (1e-3) | 2/2 | -4.100 ± 0.090 | 3/3 | -1.741 ± 0.02 |" in lines
    assert "| Router z-loss (1e-3) | 0.375 ± 0.125 | 2.000 ± 0.000 | 0 |" in lines
    assert not any("Table 2" in line for line in lines)
    as_json = to_rows(RESULTS)
    assert as_json["variants"]["baseline"]["quality"] == {"value": pytest.approx(-4.1), "error": pytest.approx(0.1)}
    assert as_json["variants"]["baseline"]["router_z_loss"] == {"value": 4.0, "error": 0.0}
    assert len(as_json["runs"]) == 8
    assert list(as_json["runs"][4]) == [
        "variant", "seed", "status", "verdict", "quality", "router_z_loss", "max_router_logit"
    ]  # fmt: skip
    assert [(r["router_z_loss"], r["max_router_logit"]) for r in as_json["runs"][4:6]] == [(None, None), (0.5, 2.0)]


def test_pairs_are_of_equal_seeds():
    found = pairs(RESULTS, "baseline", "router_z_loss")
    assert [(p.seed, p.cross_entropy, p.router_z_loss) for p in found] == [
        (0, (4.0, 4.01), (4.0, 0.5)),
        (1, (4.2, 4.19), (4.0, 0.25)),
    ]


def test_sweep_table(tmp_path: Path):
    results = {0.0: RESULTS[:2], 1e-05: [RESULTS[4]], 1e-3: [RESULTS[6]]}
    plot_sweep(results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    table = format_sweep(results).splitlines()
    assert table[2:] == [
        "| 0 | 2/2 | -4.100 ± 0.100 | 4.000 ± 0.000 | 2.000 ± 0.000 |",
        "| 1e-05 | 0/0 (1 unfinished) | - | - | - |",
        "| 0.001 | 1/1 | -4.190 | 0.250 | 2.000 |",
    ]


def test_least_stable_fraction_of_three_stable_seeds():
    assert least_stable_fraction(3) ** 3 == pytest.approx(0.05)


def test_report_says_what_it_cannot_show(finished: Callable[..., Run], tmp_path: Path):
    runs = [
        finished(v, s, 4.0 + 0.01 * s, z=z) for s in range(3) for v, z in (("baseline", 4.4), ("router_z_loss", 0.4))
    ]
    write_report(runs, [run.result() for run in runs], "small.yaml", tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    assert "6 runs of 10 steps (1,000 parameters, 500 tokens in the first)" in report
    assert "| mean | 4.4000 | 0.4000 | 11.0 | 4.0100 | 4.0100 | +0.0000 |" in report
    assert "3 of 3 seeds stable: a variant that is stable on 37% of seeds" in report
    assert "does not show which technique stabilizes" in report
    assert "not distinguishable: Router z-loss (1e-3)" in report
    assert "Diverged and unfinished" not in report
