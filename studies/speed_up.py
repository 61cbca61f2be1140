"""How many steps a dense twin takes to reach a sparse model's quality, from the evaluations of trained runs.

python -m studies.speed_up --sparse runs/laboratory-cpu --dense runs/laboratory-cpu-dense --picture runs/speed_up.png

Several runs on each side are paired by training.seed. The speed-up (as in Fedus et al. 2021) is the dense run's steps
over those after which the sparse run was first as good as the dense run at its end. A learning rate that decays is
still high at that step, so a sparse run of just that length would be better: the figure is a lower bound.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.arguments import Parser
from common.paths import check_can_write_file, no_folder, path_argument
from common.program import run
from studies.runner.options import report_user_error
from studies.runner.statistics import mean_of
from training.config.errors import ConfigError
from training.config.run import validate
from training.monitoring.columns import CROSS_ENTROPY, PROCESSOR_SECONDS, STEP, VALIDATION, split_of, training_rows
from training.run.folder import RunFolder

Curve = Mapping[int, float]  # step → held-out cross-entropy, nats per target token


@dataclass(frozen=True)
class Course:
    """What a run reached, and when.

    Args:
        name: of the run's folder.
        seed: ``training.seed``.
        curve: held-out cross-entropy after each evaluated step, in order.
        processor_seconds: median of a step, of one rank; None if the run has no such rows.
    """

    name: str
    seed: int
    curve: Curve
    processor_seconds: float | None

    @property
    def end(self) -> tuple[int, float]:
        """The last evaluated step and its cross-entropy."""
        return list(self.curve.items())[-1]


def read_course(run_dir: Path, *, sparse: bool) -> Course:
    """Read a run's evaluations from ``metrics.jsonl``.

    Raises:
        ConfigError: the folder holds no run, no evaluation, or a model of the other kind.
    """
    folder = RunFolder(run_dir)
    if not run_dir.is_dir():
        raise ConfigError(no_folder(run_dir, str(run_dir), "name a run folder, such as runs/tiny"))
    if not folder.metrics_file.is_file():
        raise ConfigError(
            f"{run_dir} holds no run: name a folder that train.py has written, with {folder.metrics_file.name}"
        )
    config = validate(folder.saved_config())
    if bool(config.architecture().sparse_layer_names()) is not sparse:
        kinds = ("sparse", "dense") if sparse else ("dense", "sparse")
        raise ConfigError(f"--{kinds[0]} {run_dir} is a {kinds[1]} model: name it after --{kinds[1]}")
    rows = folder.rows()
    curve = {int(row[STEP]): float(row[CROSS_ENTROPY]) for row in rows if split_of(row) == VALIDATION and row[STEP]}
    if not curve:
        raise ConfigError(f"{run_dir} has no evaluation yet: train it on, or set training.eval_every to fewer steps")
    times = [row[PROCESSOR_SECONDS] for row in training_rows(rows) if PROCESSOR_SECONDS in row]
    return Course(
        run_dir.name, config.training.seed, dict(sorted(curve.items())), statistics.median(times) if times else None
    )


def steps_to_reach(curve: Curve, level: float) -> float | None:
    """Return after how many steps a curve is first at most ``level``, linear between evaluations; None: never."""
    before: tuple[int, float] | None = None
    for step, value in curve.items():
        if value <= level:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - value)
        before = (step, value)
    return None


def pairs_of(sparse: Iterable[Course], dense: Iterable[Course]) -> list[tuple[Course, Course]]:
    """Pair runs of the same seed, in order of seeds.

    Raises:
        ConfigError: a seed occurs twice on one side, or on one side alone.
    """
    sides: list[dict[int, Course]] = []
    for option, courses in (("--sparse", sparse), ("--dense", dense)):
        side: dict[int, Course] = {}
        for course in courses:
            if course.seed in side:
                other = side[course.seed].name
                raise ConfigError(
                    f"{option} {other} and {course.name} both have training.seed={course.seed}: name one of them"
                )
            side[course.seed] = course
        sides.append(side)
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        raise ConfigError(
            f"training.seed={alone[0]} has no run on one side: name a --sparse and a --dense run of each seed"
        )
    return [(sides[0][seed], sides[1][seed]) for seed in sorted(sides[0])]


def course_table(pairs: Sequence[tuple[Course, Course]]) -> str:
    """Format the cross-entropies at steps that all runs have evaluated: means and standard errors over the seeds."""
    common = set.intersection(*(set(course.curve) for pair in pairs for course in pair))
    lines = ["| Step | Sparse | Dense | Dense - sparse, by seed |", "| --- | --- | --- | --- |"]
    for step in sorted(common):
        values = [(sparse.curve[step], dense.curve[step]) for sparse, dense in pairs]
        means = [mean_of(side) for side in zip(*values, strict=True)]
        differences = ", ".join(f"{dense - sparse:+.4f}" for sparse, dense in values)
        lines.append(f"| {step:,} | {means[0]} | {means[1]} | {differences} |")
    return "\n".join(lines)


def speed_up_table(pairs: Sequence[tuple[Course, Course]]) -> str:
    """Format the speed-up of each pair in steps, and in processor time: a sparse step may take longer."""
    lines = [
        "| Seed | Dense ends at | after steps | Sparse is there after | Speed-up in steps | in processor time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for sparse, dense in pairs:
        steps, level = dense.end
        reached = steps_to_reach(sparse.curve, level)
        if reached is None:
            lines.append(f"| {sparse.seed} | {level:.4f} | {steps:,} | never, in {sparse.end[0]:,} | - | - |")
            continue
        times = (dense.processor_seconds, sparse.processor_seconds)
        in_time = f"{steps * times[0] / (reached * times[1]):.2f}" if times[0] and times[1] else "-"
        lines.append(
            f"| {sparse.seed} | {level:.4f} | {steps:,} | {reached:,.0f} | {steps / reached:.2f} | {in_time} |"
        )
    return "\n".join(lines)


def plot(pairs: Sequence[tuple[Course, Course]], path: Path) -> None:
    """Plot held-out cross-entropy over the steps, one line per run."""
    from studies.plots import plot_lines  # matplotlib takes seconds to import

    lines = [
        (("sparse", "dense")[side], list(course.curve), list(course.curve.values()))
        for side in (0, 1)
        for course in (pair[side] for pair in pairs)
    ]
    plot_lines(lines, "step", "held-out cross-entropy, nats per target token", path)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m studies.speed_up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sparse", nargs="+", required=True, type=path_argument, help="run folders, one per seed")
    parser.add_argument("--dense", nargs="+", required=True, type=path_argument, help="those of the dense twin")
    parser.add_argument("--picture", type=path_argument, help="draw the curves into this PNG file")
    return parser.parse_args()


def main() -> int:
    """Print both tables; return the exit code."""
    arguments = parse_arguments()
    try:
        if arguments.picture is not None:
            check_can_write_file(arguments.picture, "--picture")
        pairs = pairs_of(
            [read_course(path, sparse=True) for path in arguments.sparse],
            [read_course(path, sparse=False) for path in arguments.dense],
        )
        print(course_table(pairs), speed_up_table(pairs), sep="\n\n")
        if arguments.picture is not None:
            plot(pairs, arguments.picture)
    except ValueError as error:
        return report_user_error(error)
    return 0


if __name__ == "__main__":
    run(main)
