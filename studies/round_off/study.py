"""The round-off study (Zoph et al. 2022, section 3.4): large router logits in low precision, and the router z-loss.

python -m studies.round_off --config configs/tiny.yaml --steps 200
python -m studies.round_off --no-training

It trains from router weights multiplied by 1, 10, 100 and 1000, with and without router z-loss, and measures routers in
bf16 against float64: those of random tokens, of the seed 0 of each variant, and of the runs that --trained names.
Finished runs and measurements are kept: after an interruption the same command continues.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.paths import path_argument
from studies.round_off.plan import FACTORS, Planned, plan
from studies.round_off.rows import FinishedRuns, Measurements, Row, weights_identity
from studies.runner.execute import alone_in
from studies.runner.options import (
    common_arguments,
    execute_plan,
    exit_code,
    make_launcher,
    make_parser,
    positive,
    report_user_error,
)
from studies.runner.runs import Result, Run
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.export.folders import check_run
from training.run.folder import RunFolder

FP32_FACTORS = [100.0]
TOKENS = 2048  # of a layer, random or real
DRAWS = 4  # of random tokens and initial weights
SIZES = ("d_model", "d_ff", "num_experts", "top_n", "initializer_scale")  # what decides results of random tokens


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.round_off", __doc__, "runs/round_off")
    add = parser.add_argument
    add("--factors", nargs="+", type=float, default=FACTORS, metavar="X",
        help=f"train from initial router weights x X, in bf16 ({' '.join(f'{x:g}' for x in FACTORS)})")  # fmt: skip
    add("--fp32-factors", nargs="*", type=float, default=FP32_FACTORS, metavar="X",
        help="of these, train with routers in fp32, too, without z-loss (100)")  # fmt: skip
    add("--seeds", type=int, default=5, help="seeds of every variant (%(default)s)")
    add("--rows", type=path_argument, help="file of finished runs, which are not trained again (OUT/rows.jsonl)")
    add("--no-training", action="store_true", help="only measure routers; train nothing")
    add("--trained", nargs="+", type=path_argument, default=[], metavar="RUN",
        help="folders of runs whose routers to measure, besides those of this study")  # fmt: skip
    add("--tokens", type=int, default=TOKENS, help="tokens of a layer to measure (%(default)s)")
    return parser.parse_intermixed_args()


def check(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Check what the measurements need, before anything is trained.

    Raises:
        ConfigError: a folder is no run, or an option is out of range.
    """
    positive(arguments, "tokens")
    for folder in arguments.trained:
        if "=" in str(folder):
            raise ConfigError(f"{folder} follows --trained and is read as a folder: put key=value before --trained")
    for folder in arguments.trained:
        check_run(folder)
    model = config.architecture()
    if model.feed_forward != "geglu" or model.feed_forward_bias != "none":
        raise ConfigError("the study reads experts with model.feed_forward = geglu and model.feed_forward_bias = none")


def main() -> int:
    """Execute the unfinished runs and measurements, then write the page; return the exit code."""
    arguments = parse_arguments()
    try:
        launcher = make_launcher(arguments)
        common, config = common_arguments(arguments, launcher)
        planned = plan(arguments, config)
        check(arguments, config)
        finished = FinishedRuns(arguments.rows or arguments.out / "rows.jsonl", [arguments.config, *common])
        missing = [one for one in planned if one[:2] not in finished.found and not arguments.no_training]
        outcome = execute_plan(arguments, launcher, common, missing)
        if outcome is None:
            return 0
        with alone_in(arguments.out):
            write_results(arguments, config, planned, outcome, finished)
    except ValueError as error:
        return report_user_error(error)
    return exit_code(arguments, [result for _, result in outcome])


def write_results(
    arguments: argparse.Namespace,
    config: RunConfig,
    planned: Sequence[Planned],
    outcome: Sequence[tuple[Run, Result]],
    finished: FinishedRuns,
) -> None:
    """Measure routers, and write tables and pictures.

    Args:
        arguments: of the command line.
        config: that all runs have in common.
        planned: all runs of the study.
        outcome: runs that this call has trained, or found in their folders.
        finished: runs of earlier calls.

    Raises:
        ConfigError: a run of ``--trained`` cannot be measured.
    """
    # torch and matplotlib take seconds to import
    from studies.round_off.measure import measure_random
    from studies.round_off.pictures import plot_errors, plot_recovery
    from studies.round_off.recovery import bar_of, summarize, to_rows
    from studies.round_off.report import recovery_table, write_page
    from studies.round_off.trained import measure_run

    out, tokens = arguments.out, arguments.tokens
    finished.add(to_rows(outcome))
    rows = [finished.found[one[:2]] for one in planned if one[:2] in finished.found]
    measurements = Measurements(out / "measurements.jsonl")
    sizes = {key: value for key, value in config.model.model_dump().items() if key in SIZES}
    print(f"measuring {DRAWS} draws of {tokens:,} random tokens", flush=True)
    random = measurements.rows(
        {"random": sizes, "tokens": tokens, "draws": DRAWS},
        partial(measure_random, config.st_moe_config(), tokens, DRAWS),
    )
    trained: dict[str, list[Row]] = {}
    for label, folder in runs_to_measure(arguments, planned).items():
        print(f"measuring {folder}", flush=True)
        of = {"run": str(folder), "weights": weights_identity(folder), "tokens": tokens}
        trained[label] = measurements.rows(of, partial(measure_run, folder, tokens))
    recoveries, bar = summarize(rows), bar_of(rows)
    plot_errors(random, trained, out / "round_off.png")
    if rows:
        plot_recovery(rows, bar, out / "recovery.png")
        print(f"\n{recovery_table(recoveries, bar)}\n")
    write_page(random, trained, recoveries, bar, out / "report.md")
    print(f"{out}/report.md holds tables and pictures")


def runs_to_measure(arguments: argparse.Namespace, planned: Sequence[Planned]) -> dict[str, Path]:
    """Return folders by label: those of the study's runs of seed 0 that are there, then those that the user names."""
    found = {}
    for name, seed, _ in planned:
        folder = RunFolder(arguments.out / "runs" / f"{name}-{seed}")
        if seed == 0 and folder.summary() is not None and folder.has_checkpoint():
            found[name] = folder.path
    for folder in arguments.trained:
        label = folder.resolve().name
        found[str(folder) if label in found else label] = folder
    return found
