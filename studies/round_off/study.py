"""The round-off study (Zoph et al. 2022, section 3.4): large router logits in low precision, and the router z-loss.

python -m studies.round_off --config configs/tiny.yaml
"""

import argparse

from common.program import run
from studies.round_off.plan import FACTORS, plan
from studies.runner.options import (
    common_arguments,
    execute_plan,
    exit_code,
    make_launcher,
    make_parser,
    report_user_error,
)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.round_off", __doc__, "runs/round_off")
    add = parser.add_argument
    shown = " ".join(f"{factor:g}" for factor in FACTORS)
    add("--factors", nargs="+", type=float, default=FACTORS, metavar="X", help=f"initial router weights x ({shown})")
    add("--fp32-factors", nargs="*", type=float, default=[100.0], metavar="X",
        help="factors to train in fp32, too, without z-loss (100)")  # fmt: skip
    add("--seeds", type=int, default=5, help="seeds of every variant (%(default)s)")
    return parser.parse_intermixed_args()


def main() -> int:
    """Execute the unfinished runs, then write the page; return the exit code."""
    arguments = parse_arguments()
    try:
        launcher = make_launcher(arguments)
        common, config = common_arguments(arguments, launcher)
        outcome = execute_plan(arguments, launcher, common, plan(arguments, config))
    except ValueError as error:
        return report_user_error(error)
    if outcome is None:
        return 0
    return exit_code(arguments, [result for _, result in outcome])


if __name__ == "__main__":
    run(main)
