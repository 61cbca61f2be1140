"""The stability study (Zoph et al. 2022, tables 2-4): which techniques stabilize sparse models, and at what cost.

python -m studies.stability --config configs/tiny.yaml --seeds 3
python -m studies.stability --config configs/st_moe_l.yaml --steps 100000 --launcher slurm --nodes 8 --dry-run

Finished runs are kept: after an interruption the same command continues and gives the same table.
"""

import argparse
from typing import Any

from common.strict_json import finite_or_null, to_json
from studies.runner.options import (
    check_variants,
    common_arguments,
    execute_plan,
    exit_code,
    make_launcher,
    make_parser,
    positive,
    report_user_error,
)
from studies.stability.report import write_report
from studies.stability.table import format_tables, to_rows
from studies.stability.variants import BASELINE, VARIANTS, variant_overrides
from training.config.run import RunConfig


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.stability", __doc__, "runs/stability")
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help=f"of {', '.join(VARIANTS)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every variant (%(default)s)")
    parser.add_argument("--baseline-seeds", type=int, help="seeds of the baseline (twice as many)")
    return parser.parse_intermixed_args()


def plan(arguments: argparse.Namespace, config: RunConfig) -> list[tuple[str, int, dict[str, Any]]]:
    """Return variant, seed and overrides of every run, seed by seed, so that an incomplete study compares variants.

    Raises:
        ConfigError: an unknown variant, a number that is not positive, or a variant that equals the baseline.
    """
    positive(arguments, "seeds", "baseline_seeds")
    check_variants("--variants", arguments.variants, VARIANTS)
    names = list(dict.fromkeys(arguments.variants))
    seeds = dict.fromkeys(names, arguments.seeds)
    if BASELINE in seeds:
        seeds[BASELINE] = arguments.baseline_seeds or 2 * arguments.seeds
    return [
        (name, seed, variant_overrides(name, config))
        for seed in range(max(seeds.values()))
        for name in names
        if seed < seeds[name]
    ]


def main() -> int:
    """Execute the unfinished runs, then write tables, figures and report; return the exit code."""
    arguments = parse_arguments()
    try:
        launcher = make_launcher(arguments)
        common, config = common_arguments(arguments, launcher)
        outcome = execute_plan(arguments, launcher, common, plan(arguments, config))
    except ValueError as error:
        return report_user_error(error)
    if outcome is None:
        return 0
    from studies.plots import plot_curves, plot_quality_against_stability  # matplotlib takes seconds to import

    runs, results = [planned for planned, _ in outcome], [result for _, result in outcome]
    tables, out = format_tables(results), arguments.out
    (out / "table.md").write_text(tables, encoding="utf-8")
    (out / "table.json").write_text(to_json(finite_or_null(to_rows(results)), indent=2) + "\n", encoding="utf-8")
    plot_curves(runs, out / "curves.png")
    plot_quality_against_stability(results, out / "quality_stability.png")
    write_report(runs, results, arguments.config, out / "report.md")
    print(f"\n{tables}\n{out}/report.md holds the figures, and what the study can and cannot show")
    return exit_code(arguments, results)
