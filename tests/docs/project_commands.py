"""Checks commands that start this project's programs and scripts."""

import argparse
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.hosts import read_hosts
from data.span_corruption import NUM_SENTINELS
from data.streaming.identity import VOCABULARY
from data.tasks import get
from data.tokenizer import Tokenizer, train_vocabulary
from tests.docs.page import Page, configs_of
from tests.docs.parsing import PreflightError, called_as, parse, require, unknown
from tests.support.checkpoints import write_checkpoint
from tests.support.corpus import sentences
from training.checkpoint.initial.fitting import load_run_config
from training.config.checks import check_all_to_all, check_layout
from training.config.run import load_config
from training.dry_run.checks import cluster_of
from training.dry_run.run import prepare as prepare_dry_run
from training.planning.search.candidates import candidates
from training.run.folder import RunFolder
from training.tasks.questions import CROSS_ENTROPY, task_names

GPUS_OF_A_HOST = (1, 2, 4, 8)  # of the machines on which a command may start one rank per GPU
INTERNAL_PROGRAMS = ("data.streaming.worker",)  # started by other programs, with arguments that only these know
# Studies of trained models: they train nothing, and so have no --dry-run.
STUDIES_OF_A_MODEL = (
    "studies.routing", "studies.speed_up", "studies.zero_experts", "studies.design_space.evaluate",
    "studies.finetuning.by_task",
)  # fmt: skip
RESTART_OPTIONS = ("--max-restarts", "--backoff", "--crash-loop")
#: Options of pytest, and whether a value follows.
PYTEST_OPTIONS = {
    "-q": False, "-s": False, "-x": False, "-v": False, "--lf": False, "--cov": False, "--cov-report": True,
    "-m": True, "-k": True, "-n": True, "--numprocesses": True, "--dist": True,
}  # fmt: skip


def check_train(page: Page, arguments: list[str], layouts: Sequence[tuple[int, int]]) -> None:
    """``train.py``, for each layout: ranks, and ranks of a host."""
    options = parse(importlib.import_module("train"), "train.py", arguments)
    if options is None:
        return
    config = load_config(page.config_file(options.config), options.overrides)
    if options.check is not None:
        check_layout(config, options.check)
        return
    if options.dry_run:
        prepare_dry_run(config, cluster_of(options))
        return
    for ranks, ranks_of_host in layouts:
        try:
            check_layout(config, ranks)
            check_all_to_all(config, ranks_of_host)
            streams = config.data.num_streams
            require(streams % ranks == 0, f"data.num_streams = {streams} is not divisible by the world size {ranks}")
        except (ValueError, PreflightError) as error:
            raise PreflightError(f"on {ranks} ranks: {error}") from None
    if not (options.resume or options.restart or options.is_done):
        page.start_run(config)


def check_deepspeed(page: Page, arguments: list[str]) -> None:
    """The deepspeed launcher, whose options its own parser reads."""
    runner = importlib.import_module("deepspeed.launcher.runner")
    with called_as("deepspeed", arguments):
        options = runner.parse_args(arguments)
    if options.include or options.exclude or options.num_nodes != -1:
        raise unknown("deepspeed --include, --exclude or --num_nodes")
    if options.module:
        return check_program(page, options.user_script, options.user_args)
    if options.user_script == "evaluate.py":
        return check_program(page, "evaluate", options.user_args)
    if options.user_script != "train.py":
        raise unknown(f"deepspeed starts {options.user_script}")
    layouts = [(gpus, gpus) for gpus in GPUS_OF_A_HOST]
    if options.num_gpus != -1:
        layouts = [(options.num_gpus, options.num_gpus)]
    elif options.hostfile != runner.DLTS_HOSTFILE:
        layouts = [hostfile_layout(options.hostfile)]
    return check_train(page, options.user_args, layouts)


def check_srun(page: Page, arguments: list[str]) -> None:
    """Tasks of Slurm that are the ranks themselves."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in ("--nodes", "--ntasks-per-node", "--gpus-per-task", "--kill-on-bad-exit"):
        parser.add_argument(option, type=int, default=1)
    options, command = parser.parse_known_args(arguments)
    if command[:2] != ["python", "train.py"]:
        raise unknown(f"srun {' '.join(command[:2])}")
    ranks_of_host = options.ntasks_per_node
    check_train(page, command[2:], [(options.nodes * ranks_of_host, ranks_of_host)])


def hostfile_layout(file: str) -> tuple[int, int]:
    """Ranks in all, and on a host, of a hostfile of the deepspeed launcher."""
    require(Path(file).is_file(), f"{file}: no such file")
    slots = read_hosts(Path(file)).values()
    return sum(slots), min(slots)


def check_python(page: Page, arguments: list[str]) -> None:
    """``python FILE …`` and ``python -m MODULE …``."""
    if arguments[:1] == ["-m"]:
        module, rest = arguments[1], arguments[2:]
    elif arguments and arguments[0].endswith(".py"):
        require(Path(arguments[0]).is_file(), f"{arguments[0]}: no such file")
        module, rest = arguments[0].removesuffix(".py").replace("/", "."), arguments[1:]
    else:
        raise unknown(shlex.join(["python", *arguments]))
    if module == "train":
        check_train(page, rest, [(1, 1)])
    elif module == "pytest":
        check_pytest(page, rest)
    elif module == "venv":
        require(len(rest) == 1, "python -m venv takes one folder")
    else:
        check_program(page, module, rest)


def check_program(page: Page, module: str, arguments: list[str]) -> None:
    """A program with a parser of its own."""
    require(is_program(page.root, module), f"{module}: no such program")
    if module in INTERNAL_PROGRAMS:
        return None
    package = (page.root / module.replace(".", "/") / "__main__.py").is_file()
    program = importlib.import_module(f"{module}.__main__" if package else module)
    if module == "studies.finetuning":
        make_pretrained(page, arguments)
    if module.startswith("studies.") and module not in STUDIES_OF_A_MODEL:
        return check_study(page, program, arguments)
    options = parse(program, module, arguments)
    if options is None:
        return None
    if module == "studies.routing":
        return check_routing(page, options)
    if module == "data.prepare":
        check_prepare(page, options)
    elif module in ("training.report", "studies.zero_experts"):
        for run in options.run:
            page.run(str(run))
    elif module == "studies.speed_up":
        for run in (*options.sparse, *options.dense):
            page.run(str(run))
    elif module == "evaluate":
        check_evaluate(page, options)
    elif module == "plan":
        check_plan(page, program, options)
    elif module in ("convert", "fill"):
        folder = str(options.run if hasattr(options, "run") else arguments[0]).rstrip("/")
        # An export is in exported/NAME, of an earlier command that exports runs/NAME.
        page.run(folder.replace("exported/", "runs/", 1) if module == "fill" else folder)
    elif module == "tests.support.compare_runs" and page.in_order:
        for folder in (options.before, options.after):
            page.run(str(folder))
    return None


def check_evaluate(page: Page, options: argparse.Namespace) -> None:
    """A model that the page trains or exports, and tasks that exist; their rows are not looked for."""
    page.run(str(options.model).replace("exported/", "runs/", 1))
    try:
        names = task_names(options.tasks)
    except ValueError as error:
        raise PreflightError(str(error)) from None
    for name in names:
        splits = (options.split,) if name == CROSS_ENTROPY else get(name).splits
        require(options.split in splits, f"task {name} has no split {options.split}")


def check_plan(page: Page, program: Any, options: argparse.Namespace) -> None:
    """A config and a card that exist, and a number of GPUs that the config fits; a plan is made in a moment."""
    if options.mfu_from is not None:
        page.run(str(options.mfu_from))
        options.mfu_from = None
    options.config = page.config_file(options.config)
    if options.search:
        config, _, _ = program.inputs_of(options)
        next(candidates(config, options.gpus))
    else:
        program.plan_of(options)


def check_routing(page: Page, options: argparse.Namespace) -> None:
    """A model that the page trains or exports, or what the study has made of it; the text is not looked for."""
    folder = str(options.model).removesuffix("/routing")
    page.run(folder.replace("exported/", "runs/", 1))
    if options.config is not None:
        load_config(page.config_file(options.config))
    require(
        folder.startswith("exported/") == (options.config is not None) or folder != str(options.model),
        f"{folder}: an export needs --config, a run has its own",
    )


def is_program(root: Path, module: str) -> bool:
    """Whether ``python -m`` can start the module."""
    path = root / module.replace(".", "/")
    return (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()


def make_pretrained(page: Page, arguments: list[str]) -> None:
    """The runs that a fine-tuning study begins with, which the page trains, with checkpoints of no weights."""
    study = importlib.import_module("studies.finetuning.study")
    options = parse(study, "study", arguments)
    for run in study.runs_of(options).values() if options is not None else ():
        config = page.run(str(run))
        vocabulary = RunFolder(run).vocabulary
        if not vocabulary.is_dir():
            train_vocabulary(sentences(400, seed=0), 50, vocabulary)
            state = {"identity": {VOCABULARY: Tokenizer(vocabulary).fingerprint}}
            training = config.training.model_copy(update={"output_dir": str(run.parent), "name": run.name})
            write_checkpoint(config.model_copy(update={"training": training}), data=state)


def check_study(page: Page, program: Any, arguments: list[str]) -> None:
    """Plan all runs of a study: their configurations are checked for their ranks. Later commands may name them."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    dry_run = arguments if "--dry-run" in arguments else [*arguments, "--dry-run"]
    with called_as("study", dry_run), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main()
    require(not code, err.getvalue().strip())
    for line in out.getvalue().splitlines() if page.in_order and dry_run is not arguments else ():
        _, found, rest = line.partition(" train.py --config ")
        if found:
            file, *overrides = shlex.split(rest)
            config = load_run_config(file, [override for override in overrides if not override.startswith("-")])
            page.studied[config.run_dir] = config


def check_prepare(page: Page, options: argparse.Namespace) -> None:
    """A vocabulary made for a config in ``configs/`` must fit its model."""
    if options.vocabulary is not None:
        return
    for config in configs_of(page.root):
        if Path(config.data.vocabulary) == options.out / "vocabulary":
            rows = config.st_moe_config().vocab_size
            require(
                options.vocab_size + NUM_SENTINELS <= rows,
                f"{options.vocab_size} pieces and {NUM_SENTINELS} sentinels do not fit model.vocab_size = {rows} of "
                f"{config.training.name}, which reads {options.out}",
            )


def check_bash(page: Page, arguments: list[str]) -> None:
    """The scripts of ``launch/``."""
    require(arguments, "cannot be checked: bash alone; teach tests/docs")
    script, *rest = arguments
    require(Path(script).is_file(), f"{script}: no such file")
    name = Path(script).name
    if name == "quickstart.sh":
        check_quickstart(page, rest)
    elif name == "test.sh":
        check_pytest(page, rest)
    elif name in ("lint.sh", "check_image.sh"):
        require(not rest, f"{script} takes no arguments")
    elif name == "multi_node.sh":
        require(rest, f"{script} needs a hostfile")
        check_train(page, rest[1:], [hostfile_layout(rest[0])])
    elif name == "run_until_done.sh":
        while rest and rest[0].startswith("-"):
            require(rest[0] in RESTART_OPTIONS, f"{script}: unknown option {rest[0]}")
            rest = rest[2:]
        require(rest, f"{script} needs a command")
        page.check([*rest, "--restart"])
    else:
        raise unknown(script)


def check_quickstart(page: Page, arguments: list[str]) -> None:
    """The commands in the script, with these arguments."""
    corpus = "c4" if "--c4" in arguments else "wikipedia"
    overrides = [word for word in arguments if word != "--c4" and not word.startswith("training.name=")]
    names = [word.removeprefix("training.name=") for word in arguments if word.startswith("training.name=")]
    free = next(name for n in range(1, 99) if (name := f"tiny-{n}" if n > 1 else "tiny") not in page.trained)
    values = {
        '"${overrides[@]}"': shlex.join(overrides), "$name": names[-1] if names else free, "$corpus": corpus,
        "$data": f"runs/data/{corpus}", "$port": "29500",
    }  # fmt: skip
    script = (page.root / "launch" / "quickstart.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in script.splitlines() if line.startswith(("deepspeed ", "python "))]
    require(any("train.py" in command for command in commands), "cannot be checked: quickstart.sh trains nothing")
    for command in commands:
        command = re.sub(r"\$\(python -m common\.ports\)", "29500", command)
        command = re.sub(r"\$\{name:\+([^}]*)\}", r"\1" if names else "", command)
        for name, value in values.items():
            command = command.replace(name, value)
        if "$" in command:
            raise unknown(command)
        page.check(shlex.split(command))


def check_pytest(page: Page, arguments: list[str]) -> None:
    """Paths of tests, and options."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            require(Path(word.partition("::")[0]).exists(), f"{word}: no such file")
        elif word.partition("=")[0] not in PYTEST_OPTIONS:
            raise unknown(f"pytest {word}")
        elif PYTEST_OPTIONS[word.partition("=")[0]] and "=" not in word:
            require(next(words, None), f"pytest {word} needs a value")
