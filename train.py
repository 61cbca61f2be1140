"""Pretrain an ST-MoE model, or go on with a run.

deepspeed --num_gpus 2 train.py --config configs/tiny.yaml training.steps=100
python train.py --config configs/tiny.yaml parallel.expert_parallel_size=1
"""

import argparse
import sys
import time
import traceback
from typing import NoReturn

from common.exit_codes import STOPPED, USER_ERROR, RunError
from common.logs import configure_logging
from data.sources.retry import DataError
from training.config.errors import ConfigError
from training.config.help import describe_keys
from training.config.run import load_config
from training.inputs import prepare
from training.run.folder import RunFolder
from training.run.lock import WAIT_SECONDS, enter_run, lock_run
from training.run.process import Process, initialize_distributed, leave, shut_down_distributed
from training.run.stopping import watch_launcher

WAIT_FOR_RANK_0_SECONDS = 10


def parse_arguments() -> argparse.Namespace:
    """The command line; ``key=value`` overrides are positional."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="keys:\n" + describe_keys(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="the run's YAML file, such as configs/tiny.yaml")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the run's newest checkpoint")
    start.add_argument(
        "--restart",
        action="store_true",
        help="as --resume, or begin anew if the run never wrote a checkpoint; for launch/run_until_done.sh",
    )
    start.add_argument("--is-done", action="store_true", help="train nothing: exit with 0 if the run is done, else 1")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as training.steps=100")
    return parser.parse_intermixed_args()


def refuse(message: str, process: Process, code: int = USER_ERROR) -> NoReturn:
    """Print why the run cannot go on once, whichever ranks see it, and exit."""
    if process.rank != 0:
        # The launcher ends all ranks when rank 0 exits. Still here after a while: this rank alone saw the mistake.
        time.sleep(WAIT_FOR_RANK_0_SECONDS)
        message = f"rank {process.rank}: {message}"
    print(f"error: {message}", file=sys.stderr)
    leave(code)


def main() -> None:
    """Check everything that can be checked, then train."""
    launcher_gone = watch_launcher()
    arguments = parse_arguments()
    process = Process.from_environment()
    configure_logging(process.rank)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.is_done:
            sys.exit(not RunFolder(config.run_dir).is_done(config.training.steps))
        goes_on = (arguments.resume or arguments.restart) and config.run_dir.exists()
        # A restart is nobody's mistake: what it was started after may take its time to end.
        patience = max(WAIT_SECONDS, config.training.timeout_seconds) if arguments.restart else WAIT_SECONDS
        lock = enter_run(config.run_dir, process.rank, patience) if goes_on else None
        inputs = prepare(config, process, arguments.resume, restart=arguments.restart)
        if lock is None and process.rank == 0:  # held until the process ends
            lock = lock_run(config.run_dir, patience)
    except ValueError as error:
        refuse(str(error), process)
    device = initialize_distributed(process, config.training.timeout_seconds)
    from training.trainer import Trainer  # torch and DeepSpeed are heavy: imported when all is checked

    watchdog = None
    try:
        trainer = Trainer(config, process, inputs, device, launcher_gone)
        watchdog = trainer.watchdog
        done = trainer.train()
    except (ConfigError, DataError) as error:
        refuse(str(error), process)
    except RunError as error:
        refuse(str(error), process, error.code)
    except Exception:
        traceback.print_exc()
        if watchdog is not None and (lost := watchdog.lost()):
            print(f"error: {lost}", file=sys.stderr)
        leave(1)
    watchdog.close()
    shut_down_distributed()
    if not done:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
