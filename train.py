"""Pretrain an ST-MoE model, or resume a run.

deepspeed --num_gpus 2 train.py --config configs/tiny.yaml training.steps=100
python train.py --config configs/tiny.yaml parallel.expert_parallel_size=1
python train.py --config configs/st_moe_32b.yaml --dry-run --world-size 512 --rank 77
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common.arguments import Parser
from common.exit_codes import STOPPED, USER_ERROR, RunError
from common.logs import ALL_RANKS, get_logger, hold_notices
from common.paths import PLACE_ERRORS, check_can_write, path_text_argument, why
from common.program import begin, is_read
from data.sources.retry import DataError
from training.checkpoint.initial.fitting import load_run_config
from training.config.checks import check_layout, give_advice
from training.config.errors import ConfigError
from training.config.help import describe_keys
from training.config.run import RunConfig
from training.config.training import TrainingConfig
from training.dry_run.checks import CLUSTER_OPTIONS, add_cluster_arguments, cluster_of
from training.inputs import prepare
from training.planning.display.options import TERMINAL, check_json, json_file, show
from training.run.distributed import initialize_distributed, leave, shut_down_distributed
from training.run.folder import RunFolder, check_place
from training.run.launchers import LaunchError, likely_rank
from training.run.lock import WAIT_SECONDS, begin_run, enter_run
from training.run.process import Process
from training.run.rendezvous import FailedStartError, LastWords, meet, tell_before_meeting
from training.run.stopping import watch_launcher
from training.run.watchdog import Watchdog

WAIT_FOR_RANK_0_SECONDS = 20

logger = get_logger("train")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; ``key=value`` overrides are positional."""
    parser = Parser(
        description=__doc__, epilog="keys:\n" + describe_keys(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        action="once",
        type=path_text_argument,
        required=True,
        help="YAML file of the run, such as configs/tiny.yaml",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of the run")
    start.add_argument("--restart", action="store_true", help="as --resume; without a checkpoint, begin the run")
    start.add_argument("--is-done", action="store_true", help="do not train: exit with 0 if the run is done, else 1")
    start.add_argument(
        "--check",
        type=int,
        metavar="RANKS",
        help="do not train: check the config for this number of ranks; code 0 or 2",
    )
    start.add_argument(
        "--dry-run",
        action="store_true",
        help="do not train: be one rank of a cluster on this machine, without a GPU, text or numbers, and show its "
        "groups, shapes, traffic, streams and files; code 0, 2 or, if the plan differs from it, 1",
    )
    add_cluster_arguments(parser.add_argument_group("of --dry-run"))
    # added by the deepspeed launcher and, with a dash, by torch.distributed.launch
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as training.steps=100")
    arguments = parser.parse_intermixed_args()
    given = [option for option, value in vars(arguments).items() if option in CLUSTER_OPTIONS and value is not None]
    if given and not arguments.dry_run:
        parser.error(f"--{given[0].replace('_', '-')} goes with --dry-run")
    if arguments.dry_run and arguments.world_size is None:
        parser.error("--dry-run needs --world-size N: the ranks of the cluster")
    return arguments


# Tells the other ranks a reason and an exit code, for so many seconds; returns whose words stand.
Tell = Callable[[str, int, float], LastWords | None]


def refuse(message: str, process: Process, code: int = USER_ERROR, tell: Tell | None = None) -> NoReturn:
    """Report why the run cannot continue, once however many ranks find out, and exit.

    Args:
        message: one line.
        process: this process among all.
        code: to exit with.
        tell: for ranks that no launcher ends when this one exits.
    """
    if process.rank == 0:
        logger.error(message)
        if tell is not None:
            tell(message, code, TrainingConfig().start_timeout_seconds)
        leave(code)
    words = None
    if tell is not None:
        words = tell(message, code, WAIT_FOR_RANK_0_SECONDS)
    else:  # The launcher ends all ranks when rank 0 exits. After this wait, only this rank knows of the mistake.
        time.sleep(WAIT_FOR_RANK_0_SECONDS)
    if words is None or words.rank == process.rank or words.text != message:
        logger.error(message, extra=ALL_RANKS)
    if tell is not None and words is None:  # rank 0 does not listen yet
        tell(message, code, TrainingConfig().start_timeout_seconds)
    leave(code)


def waiting_ranks(process: Process) -> Tell | None:
    """Return how this rank tells the others, which wait for it to start, why it does not; None if its launcher does."""
    if process.launcher_ends_all:
        return None
    return lambda text, code, seconds: tell_before_meeting(process, text, code, seconds)


def fail(error: Exception, process: Process, watchdog: Watchdog) -> NoReturn:
    """Report an error that is no mistake of the user, unless it follows from another rank's failure, and exit."""
    lost = watchdog.lost()
    if watchdog.words is not None and watchdog.words.rank != process.rank:
        leave(watchdog.words.code)
    traceback.print_exception(error)
    if lost:
        logger.error(lost, extra=ALL_RANKS)
    watchdog.tell(lost or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", 1)
    leave(1)


def check_folders(config: RunConfig) -> None:
    """Check that the run can be written. Raises ValueError."""
    folder = RunFolder(config.run_dir)
    check_can_write(config.training.output_dir, "training.output_dir")
    for path in (folder.path, folder.checkpoints, folder.tensorboard):
        if path.exists():
            check_can_write(path, "training.name", attempt=False)


def blame(error: OSError, config: RunConfig) -> str:
    """Return one line for a place that cannot be used. Raises the error again if it is of another kind."""
    if error.errno not in PLACE_ERRORS:
        raise error
    folder = Path(config.training.output_dir).absolute()
    place = folder if error.filename is None else Path(os.fsdecode(error.filename)).absolute()
    key = f"training.output_dir = {config.training.output_dir}: "
    ours = place == folder or folder in place.parents or place in folder.parents
    return f"{key}{why(error)}: set another folder, or mend this one" if ours else why(error)


def dry_run(config: RunConfig, arguments: argparse.Namespace, process: Process) -> None:
    """Show the job of one rank of a cluster; nothing is written. Raises ValueError: there can be no such job."""
    from training.dry_run.run import prepare, run

    if process.world_size > 1:
        raise ConfigError("--dry-run is one process that stands for one rank: start it with python, without a launcher")
    check_json(arguments.json)
    prepared = prepare(config, cluster_of(arguments))

    def tell(what: str) -> None:
        if not is_read() and json_file(arguments.json) is None:
            leave(0)  # nothing else comes of it
        if arguments.json != TERMINAL:
            logger.info(what)

    try:
        found = run(prepared, tell)
    except RunError as error:
        refuse(str(error), process, error.code)
    except ValueError as error:  # no mistake of the user's: those are found before
        raise RuntimeError("the dry run failed") from error
    show(found.as_row(), found.as_text(), arguments.json)


def main() -> None:
    """Check everything that can be checked, then train."""
    launcher_gone = watch_launcher()
    try:
        process = Process.from_environment()
    except LaunchError as error:  # the other ranks may find nothing wrong
        process = Process.of(error.around)
        begin(process.rank)
        refuse(str(error), process, tell=waiting_ranks(process))
    except ConfigError as error:
        rank = likely_rank(os.environ)
        begin(rank)
        refuse(str(error), Process(rank, rank, rank + 1, rank + 1))
    begin(process.rank)
    try:
        arguments = parse_arguments()
    except SystemExit as end:
        if end.code and process.rank != 0:
            time.sleep(WAIT_FOR_RANK_0_SECONDS)  # rank 0 reports it
        raise
    if process.notice is not None:
        logger.warning(process.notice)
    try:
        config = load_run_config(arguments.config, arguments.overrides)
        if arguments.check is not None:
            check_layout(config, arguments.check, option="--check")
            return
        if arguments.dry_run:
            return dry_run(config, arguments, process)
        check_place(arguments.config, arguments.overrides, config)
        if arguments.is_done:
            sys.exit(not RunFolder(config.run_dir).is_done(config.training.steps))
        check_folders(config)
        logger.info("%s: checking the data", config.run_dir)
        resumes = (arguments.resume or arguments.restart) and config.run_dir.exists()
        # On restart wait longer: the previous process may still be exiting.
        patience = max(WAIT_SECONDS, config.training.timeout_seconds) if arguments.restart else WAIT_SECONDS
        lock = enter_run(config.run_dir, process.rank, patience) if resumes else None
        with hold_notices():
            inputs = prepare(config, process, arguments.resume, restart=arguments.restart)
        step, steps = inputs.resume_from and inputs.resume_from.state.step, config.training.steps
        if step == steps and RunFolder(config.run_dir).is_done(steps):
            inputs.loader.close()
            logger.info(f"{config.run_dir} is done at step {steps}; set training.steps higher to continue")
            return
        if lock is None and process.rank == 0:  # held until the process ends
            lock = begin_run(config.run_dir, patience)
        for advice in give_advice(config):
            logger.warning(advice)
    except ValueError as error:
        refuse(str(error), process, tell=waiting_ranks(process))
    except OSError as error:
        refuse(blame(error, config), process, tell=waiting_ranks(process))
    # From here on torch and DeepSpeed are imported, which takes seconds; nothing above needs them.
    logger.info("importing torch and DeepSpeed")
    t = config.training
    try:
        store = meet(process, t.start_timeout_seconds)
        watchdog = Watchdog(process, t.timeout_seconds, t.silence_timeout_seconds)
    except ConfigError as error:
        refuse(str(error), process, tell=waiting_ranks(process))
    except FailedStartError as error:
        if process.local_rank == 0:
            logger.error(str(error), extra=ALL_RANKS)
        leave(error.code)
    try:
        watchdog.enter("joining the other ranks", 0, t.start_timeout_seconds)
        device = initialize_distributed(process, t.timeout_seconds, store)
        from training.trainer import Trainer

        logger.info("building the model")
        try:
            trainer = Trainer(config, process, inputs, device, launcher_gone, watchdog)
        except OSError as error:  # as of a full disk
            raise ConfigError(blame(error, config)) from error
        done = trainer.train()
    except (ConfigError, DataError) as error:
        refuse(str(error), process, tell=watchdog.tell)
    except RunError as error:
        refuse(str(error), process, error.code, tell=watchdog.tell)
    except Exception as error:
        fail(error, process, watchdog)
    watchdog.close()
    shut_down_distributed()
    if not done:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
