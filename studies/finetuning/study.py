"""The fine-tuning study (Zoph et al. 2022, section 4): what helps a sparse model, and its dense twin, on tasks.

python -m studies.finetuning --sparse runs/laboratory-cpu --dense runs/laboratory-cpu-dense --only batches
python -m studies.finetuning --sparse runs/tiny --tasks sst2,wiki_topic --steps 500 --only start

Each run begins with the weights of a pretrained run and is evaluated on the tasks. It is a line of the file of rows,
and is not trained again by any later call, here or elsewhere.
"""

import argparse
from pathlib import Path
from typing import Any

import data.tasks
from common.arguments import number, positive
from common.paths import path_argument
from data.tasks.task import TRAIN
from studies.finetuning.record import Asked, Recorder
from studies.finetuning.report import Page
from studies.finetuning.sources import DENSE, SPARSE, check_twins, pretrained
from studies.finetuning.trials import Trial, format_costs, format_duration, trials_of
from studies.finetuning.variants import grid_of, variants_of
from studies.results.command import add_options, one_thread_without_gpus, ranks_of, surroundings
from studies.results.rows import check_rows, read_rows
from studies.runner.launcher import Local, Slurm
from studies.runner.options import common_arguments, execute_plan, make_launcher, make_parser, report_user_error
from training.checkpoint.initial.fitting import load_run_config
from training.checkpoint.initial.source import look_into
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.tasks.questions import CROSS_ENTROPY, ask, task_names

CONFIG = "configs/finetune_cpu.yaml"
TWINS = {SPARSE: Path("runs/laboratory-cpu"), DENSE: Path("runs/laboratory-cpu-dense")}
ROWS = Path("docs/finetuning_study/rows.jsonl")
DOCUMENT = Path("docs/finetuning_study.md")
OWN_KEYS = {"training.init_from": "--sparse and --dense", "data.tasks": "--tasks", "data.objective": "the study"}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser("studies.finetuning", __doc__, "runs/finetuning", steps=None)
    parser.set_defaults(config=CONFIG)
    add = parser.add_argument_group("what is fine-tuned").add_argument
    add("--sparse", type=path_argument, metavar="RUN", help=f"pretrained sparse run, or a checkpoint ({TWINS[SPARSE]})")
    add("--dense", type=path_argument, metavar="RUN",
        help=f"its pretrained dense twin ({TWINS[DENSE]}; none if --sparse is given alone)")  # fmt: skip
    add("--tasks", nargs="+", default=[], metavar="TASK",
        help="tasks or groups that are mixed, also with commas between (those of --config)")  # fmt: skip
    add("--batch-sizes", nargs="+", type=positive, default=[], metavar="N",
        help="sequences per step (1, 4 and 16 times that of --config)")  # fmt: skip
    add("--learning-rates", nargs="+", type=rate_argument, default=[], metavar="X",
        help="learning rates (1, 1/2 and 1/10 of that of --config)")  # fmt: skip
    add("--same", choices=("examples", "steps"), default="examples",
        help="common to runs of all batch sizes; --steps is for that of --config (%(default)s)")  # fmt: skip
    add = parser.add_argument_group("how it is evaluated").add_argument
    add("--split", default="validation", help="of all tasks (%(default)s)")
    add("--limit", type=positive, metavar="N", help="most examples of each task (all)")
    add("--answers", choices=("generated", "likeliest", "both"), default="generated",
        help="as evaluate.py has it; generated answers count where there are both (%(default)s)")  # fmt: skip
    add_options(parser, ROWS, DOCUMENT)
    return parser.parse_intermixed_args()


def rate_argument(text: str) -> float:
    """Parse a learning rate. Raises ArgumentTypeError."""
    rate = number(text)
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError("a learning rate is above 0")
    return rate


def main() -> int:
    """Execute the runs that have no row yet, and show the results so far; return the exit code."""
    arguments = parse_arguments()
    one_thread_without_gpus()
    try:
        return _main(arguments)
    except ValueError as error:
        return report_user_error(error)


def _main(arguments: argparse.Namespace) -> int:
    given = list(arguments.overrides)
    runs = _settle(arguments)
    arguments.out /= f"{Path(arguments.config).stem}-{arguments.steps}"
    launcher = make_launcher(arguments)
    ranks = ranks_of(launcher)
    common, config = common_arguments(arguments, launcher)
    models = {kind: pretrained(kind, run, arguments.config, common) for kind, run in runs.items()}
    check_twins(list(models.values()))
    grid = grid_of(config, arguments.batch_sizes, arguments.learning_rates, arguments.same, ranks)
    variants = variants_of(list(models.values()), grid)
    asked = _asked(arguments, config)
    trials, impossible = trials_of(models, variants, asked.identity(), ranks, arguments.only)
    if not arguments.only:
        for name, reason in impossible.items():
            print(f"skipped: {name}: {reason}")
    check_rows(arguments.rows)
    page = Page(arguments, runs, given, trials, variants)
    if arguments.report:
        return page.write()
    if arguments.dry_run:
        jobs = launcher.jobs if isinstance(launcher, Local) else len(trials) * len(arguments.seeds)
        print(f"{format_costs(trials)}\n{format_duration(trials, len(arguments.seeds), jobs)}\n", flush=True)
    else:
        _check_rows_of_tasks(asked, config)
    return _execute(arguments, launcher, common, trials, asked, page)


def runs_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the pretrained runs by kind."""
    runs = {SPARSE: arguments.sparse, DENSE: arguments.dense}
    if arguments.sparse is None:
        runs = {kind: run or TWINS[kind] for kind, run in runs.items()}
    return {kind: run for kind, run in runs.items() if run is not None}


def _settle(arguments: argparse.Namespace) -> dict[str, Path]:
    """Complete the arguments, and return the pretrained runs by kind. Raises ConfigError."""
    for word in arguments.overrides:
        key = word.partition("=")[0]
        if key in OWN_KEYS:
            raise ConfigError(f"{word}: {key} is set by {OWN_KEYS[key]}: leave it out")
    found = runs_of(arguments)
    for kind, run in found.items():
        look_into(run, f"--{kind} {run}")
    own = [f"training.init_from={found[SPARSE]}"]
    if arguments.tasks:
        names = task_names(arguments.tasks)
        if CROSS_ENTROPY in names:
            raise ConfigError(f"--tasks {CROSS_ENTROPY}: that is no task to fine-tune on: leave it out")
        own.append(f"data.tasks=[{','.join(names)}]")
    arguments.overrides = [*arguments.overrides, *own]
    config = load_run_config(arguments.config, arguments.overrides)
    if config.data.objective != "tasks":
        raise ConfigError(
            f"--config {arguments.config} has data.objective = {config.data.objective}: name one for fine-tuning, "
            "such as configs/finetune.yaml"
        )
    if not config.data.tasks:
        raise ConfigError(f"--config {arguments.config} has no data.tasks, whose scores are compared: add --tasks")
    if arguments.steps is None:
        arguments.steps = config.training.steps
    return found


def _asked(arguments: argparse.Namespace, config: RunConfig) -> Asked:
    """Return how runs are evaluated. Raises ConfigError: a task has no such split."""
    names = tuple(task_names(config.data.tasks))
    for name in names:
        splits = data.tasks.get(name).splits
        if arguments.split not in splits:
            raise ConfigError(f"--split {arguments.split}: task {name} has {', '.join(splits)}")
        if arguments.answers == "likeliest" and data.tasks.get(name).answers.choices is None:
            raise ConfigError(f"--answers likeliest: task {name} has no choices: set generated or both")
    return Asked(names, arguments.split, arguments.limit, arguments.answers, config.data.task_folder)


def _check_rows_of_tasks(asked: Asked, config: RunConfig) -> None:
    """Look for rows of each task, before anything starts. Raises ValueError."""
    folder = Path(asked.folder)
    for name in asked.tasks:
        for split in dict.fromkeys((asked.split, config.data.validation_split)):
            ask(name, split, 1, folder)
        next(data.tasks.examples(name, TRAIN, folder), None)


def _execute(
    arguments: argparse.Namespace, launcher: Local | Slurm, common: list[str], trials: list[Trial], asked: Asked,
    page: Page,
) -> int:  # fmt: skip
    by_name = {trial.name: trial for trial in trials}
    recorder = Recorder(asked, arguments.rows, by_name, arguments.config, surroundings(launcher))
    outcome = execute_plan(arguments, launcher, common, plan(trials, arguments.seeds), recorder)
    if outcome is None:
        return 0
    lacking = [run.name for run, _ in outcome if not recorder.is_done(run)]
    page.show(read_rows(arguments.rows))
    if lacking:
        print(f"without a row: {', '.join(lacking)}")
    return int(bool(lacking) and isinstance(launcher, Local) and arguments.minutes is None)


def plan(trials: list[Trial], seeds: tuple[int, ...]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return variant, seed and overrides of every run, seed by seed; a run keeps its newest checkpoint only."""
    kept = {"training.keep_checkpoints": 1}
    return [(trial.name, seed, trial.overrides | kept) for seed in seeds for trial in trials]
