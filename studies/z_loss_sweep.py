"""Sweep of the router z-loss coefficient c_Z (Zoph et al. 2022, appendix B): quality, final L_Z and largest logit.

python -m studies.z_loss_sweep --config configs/tiny.yaml --coefficients 0 1e-4 1e-3 1e-2
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from common.program import run
from common.strict_json import finite_or_null, to_json
from studies.runner.options import (
    common_arguments,
    execute_plan,
    exit_code,
    make_launcher,
    make_parser,
    positive,
    report_user_error,
)
from studies.runner.runs import Result
from studies.runner.statistics import as_row, summarize
from training.config.errors import ConfigError

COEFFICIENTS = [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
METRICS = ("router_z_loss", "max_router_logit")
HEADER = "| c_Z | Fraction stable | Quality (↑) | Final L_Z | Largest router logit |\n| --- | --- | --- | --- | --- |"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.z_loss_sweep", __doc__, "runs/z_loss_sweep")
    parser.add_argument(
        "--coefficients",
        nargs="+",
        type=float,
        default=COEFFICIENTS,
        metavar="C_Z",
        help=f"values of c_Z ({' '.join(f'{c:g}' for c in COEFFICIENTS)})",
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every c_Z (%(default)s)")
    return parser.parse_intermixed_args()


def format_sweep(results: Mapping[float, Sequence[Result]]) -> str:
    """Format a Markdown table with one row per c_Z."""
    rows = []
    for coefficient, of_value in results.items():
        s = summarize(of_value)
        figures = " | ".join(str(mean or "-") for mean in (s.quality, *map(s.metrics.get, METRICS)))
        rows.append(f"| {coefficient:g} | {s.fraction} | {figures} |")
    return "\n".join([HEADER, *rows]) + "\n"


def to_rows(results: Mapping[float, Sequence[Result]]) -> list[dict[str, Any]]:
    """Return one row per run, for ``table.json``."""
    return [{"c_z": c, **as_row(result, METRICS)} for c, of_value in results.items() for result in of_value]


def main() -> int:
    """Execute the unfinished runs, then write table and figure; return the exit code."""
    arguments = parse_arguments()
    coefficients = list(dict.fromkeys(sorted(arguments.coefficients)))
    try:
        positive(arguments, "seeds")
        if coefficients[0] < 0:
            raise ConfigError(f"--coefficients {coefficients[0]:g} must be 0 or greater")
        launcher = make_launcher(arguments)
        common, _ = common_arguments(arguments, launcher)
        plan = [
            (f"c_z_{coefficient:g}", seed, {"model.router_z_coefficient": coefficient})
            for seed in range(arguments.seeds)
            for coefficient in coefficients
        ]
        outcome = execute_plan(arguments, launcher, common, plan)
    except ValueError as error:
        return report_user_error(error)
    if outcome is None:
        return 0
    from studies.plots import plot_sweep  # matplotlib takes seconds to import

    results = {c: [result for planned, result in outcome if planned.variant == f"c_z_{c:g}"] for c in coefficients}
    table, out = format_sweep(results), arguments.out
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "table.json").write_text(to_json(finite_or_null(to_rows(results)), indent=2) + "\n", encoding="utf-8")
    plot_sweep(results, out / "z_loss_sweep.png")
    print(f"\n{table}\n{out}/z_loss_sweep.png plots it")
    return exit_code(arguments, [result for _, result in outcome])


if __name__ == "__main__":
    run(main)
