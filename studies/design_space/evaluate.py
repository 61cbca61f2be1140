"""Evaluate a trained run at other capacity factors: the same weights, nothing is trained.

python -m studies.design_space.evaluate runs/design_space/runs/baseline-0 0.75 1.0 3.0

Writes RUN/evaluations.json, with the device's name. Factors that the file has already are not evaluated again.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import json
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.files import write_atomically
from common.paths import path_argument
from common.program import run
from common.strict_json import finite_or_null, to_json
from studies.results.machine import device_name
from studies.runner.options import report_user_error
from training.export.folders import check_run
from training.reevaluate import Change, reevaluate

FILE = "evaluations.json"
FACTOR = "eval_capacity_factor"


def read_evaluations(run_dir: Path) -> dict[str, Any]:
    """Return ``device`` and ``evaluations`` of a run; empty ones if it was not evaluated."""
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"device": None, "evaluations": []}


def missing_factors(run_dir: Path, factors: tuple[float, ...]) -> list[float]:
    """Return the capacity factors at which a run is still to be evaluated."""
    done = {evaluation[FACTOR] for evaluation in read_evaluations(run_dir)["evaluations"]}
    return [factor for factor in factors if factor not in done]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m studies.design_space.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=path_argument, help="folder of a run of a sparse model, with a checkpoint")
    parser.add_argument("factors", nargs="+", type=float, metavar="FACTOR", help="capacity factors, above 0")
    return parser.parse_args()


def main() -> int:
    """Evaluate the run at the factors that its file lacks; return the exit code."""
    arguments = parse_arguments()
    factors = missing_factors(arguments.run, tuple(arguments.factors))
    if not factors:
        return 0
    try:
        check_run(arguments.run)
        found = reevaluate(arguments.run, [Change({FACTOR: factor}) for factor in factors])
    except ValueError as error:
        return report_user_error(error)
    before = read_evaluations(arguments.run)["evaluations"]
    new = [{FACTOR: factor, **columns} for factor, columns in zip(factors, found, strict=True)]
    values = {"device": device_name(), "evaluations": [*before, *new]}
    write_atomically(arguments.run / FILE, to_json(finite_or_null(values), indent=2) + "\n")
    for row in new:
        print(f"capacity factor {row[FACTOR]:g}: cross-entropy {row['cross_entropy']:.4f}, ", end="")
        print(f"{row['dropped_fraction']:.2%} of the tokens dropped", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
