"""The design-space study (Zoph et al. 2022, section 5): quality, dropped tokens, time and memory of each choice.

python -m studies.design_space --config configs/tiny.yaml --steps 250 --dry-run
python -m studies.design_space --config configs/tiny.yaml --steps 250 --only baseline dense top1_cf1.25
python -m studies.design_space --config configs/tiny.yaml --steps 250 --measure
python -m studies.design_space --config configs/tiny.yaml --steps 250 --report

Each finished run is a line of the file of rows, and is not trained again by any later call, here or elsewhere.
"""

import argparse
from pathlib import Path
from typing import Any

from studies.design_space.record import Recorder
from studies.design_space.report import show_results, write_section
from studies.design_space.trials import Trial, format_costs, trials_of
from studies.design_space.variants import VARIANTS
from studies.results.command import add_options, one_thread_without_gpus, ranks_of, surroundings
from studies.results.rows import check_rows, read_rows
from studies.runner.launcher import Local
from studies.runner.options import (
    check_variants,
    common_arguments,
    execute_plan,
    make_launcher,
    make_parser,
    report_user_error,
)
from training.checkpoint.initial.fitting import load_run_config
from training.config.checks import check_layout
from training.config.run import RunConfig

CONFIG = "configs/laboratory_cpu.yaml"  # in which experts matter
ROWS = Path("docs/design_space/rows.jsonl")
DOCUMENT = Path("docs/design_space.md")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.design_space", __doc__, "runs/design_space", steps=None)
    parser.set_defaults(config=CONFIG)
    way = add_options(parser, ROWS, DOCUMENT)
    way.add_argument(
        "--measure",
        action="store_true",
        help="train nothing: time the steps of all variants in turn, for a quiet machine",
    )
    parser.add_argument("--rounds", type=int, default=3, help="with --measure: turns of each variant (%(default)s)")
    return parser.parse_intermixed_args()


def main() -> int:
    """Execute the runs that have no row yet, and show the results so far; return the exit code."""
    arguments = parse_arguments()
    one_thread_without_gpus()
    try:
        return _main(arguments)
    except ValueError as error:
        return report_user_error(error)


def _main(arguments: argparse.Namespace) -> int:
    check_variants("--only", arguments.only, VARIANTS)  # before torch is imported
    if arguments.steps is None:
        arguments.steps = load_run_config(arguments.config, arguments.overrides).training.steps
    arguments.out /= f"{Path(arguments.config).stem}-{arguments.steps}"
    launcher = make_launcher(arguments)
    common, config = common_arguments(arguments, launcher)
    trials, impossible = trials_of(config, arguments.only)
    for trial in trials:
        check_layout(trial.config, ranks_of(launcher))
    if not arguments.only:
        for name, reason in impossible.items():
            print(f"skipped: {name}: {reason}")
    check_rows(arguments.rows)
    if arguments.report:
        return write_section(arguments, trials)
    if arguments.dry_run:
        print(format_costs(trials), flush=True)
    if arguments.measure:
        from studies.design_space.measure import measure_all  # imports torch

        return 0 if arguments.dry_run else measure_all(trials, arguments.config, arguments.rows, arguments.rounds)
    recorder = Recorder(arguments.rows, {t.name: t for t in trials}, arguments.config, surroundings(launcher))
    outcome = execute_plan(arguments, launcher, common, plan(trials, arguments.seeds, config), recorder)
    if outcome is None:
        return 0
    lacking = [run.name for run, _ in outcome if not recorder.is_done(run)]
    show_results(trials, read_rows(arguments.rows), arguments.out)
    if lacking:
        print(f"without a row: {', '.join(lacking)}")
    return int(bool(lacking) and isinstance(launcher, Local) and arguments.minutes is None)


def plan(trials: list[Trial], seeds: tuple[int, ...], config: RunConfig) -> list[tuple[str, int, dict[str, Any]]]:
    """Return variant, seed and overrides of every run, seed by seed.

    A run keeps its newest checkpoint only, and is evaluated as often as ``config`` says, for curves.
    """
    kept = {"training.keep_checkpoints": 1, "training.eval_every": config.training.eval_every}
    return [(trial.name, seed, trial.overrides | kept) for seed in seeds for trial in trials]
