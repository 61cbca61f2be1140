"""Pretrain an ST-MoE model, or resume a run.

deepspeed --num_gpus 2 train.py --config configs/tiny.yaml training.steps=100
python train.py --config configs/tiny.yaml parallel.expert_parallel_size=1
"""

import argparse
import sys
import time
import traceback
from typing import NoReturn

from common.exit_codes import STOPPED, USER_ERROR, RunError
from common.logs import ALL_RANKS, configure_logging, get_logger
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

logger = get_logger("train")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; ``key=value`` overrides are positional."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="keys:\n" + describe_keys(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file of the run, such as configs/tiny.yaml")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of the run")
    start.add_argument("--restart", action="store_true", help="as --resume; without a checkpoint, begin the run")
    start.add_argument("--is-done", action="store_true", help="do not train: exit with 0 if the run is done, else 1")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # added by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as training.steps=100")
    return parser.parse_intermixed_args()


def refuse(message: str, process: Process, code: int = USER_ERROR) -> NoReturn:
    """Report why the run cannot continue, once however many ranks find out, and exit."""
    if process.rank != 0:
        # The launcher ends all ranks when rank 0 exits. After this wait, only this rank knows of the mistake.
        time.sleep(WAIT_FOR_RANK_0_SECONDS)
    logger.error(message, extra=ALL_RANKS)
    leave(code)


def main() -> None:
    """Check everything that can be checked, then train."""
    launcher_gone = watch_launcher()
    process = Process.from_environment()
    configure_logging(process.rank)
    arguments = parse_arguments()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.is_done:
            sys.exit(not RunFolder(config.run_dir).is_done(config.training.steps))
        resumes = (arguments.resume or arguments.restart) and config.run_dir.exists()
        # On restart wait longer: the previous process may still be exiting.
        patience = max(WAIT_SECONDS, config.training.timeout_seconds) if arguments.restart else WAIT_SECONDS
        lock = enter_run(config.run_dir, process.rank, patience) if resumes else None
        inputs = prepare(config, process, arguments.resume, restart=arguments.restart)
        step, steps = inputs.resume_from and inputs.resume_from.state.step, config.training.steps
        if step == steps and RunFolder(config.run_dir).is_done(steps):
            inputs.loader.close()
            logger.info(f"{config.run_dir} is done at step {steps}; set training.steps higher to continue")
            return
        if lock is None and process.rank == 0:  # held until the process ends
            lock = lock_run(config.run_dir, patience)
    except ValueError as error:
        refuse(str(error), process)
    # From here on torch and DeepSpeed are imported, which takes seconds; nothing above needs them.
    device = initialize_distributed(process, config.training.timeout_seconds)
    from training.trainer import Trainer

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
            logger.error(lost, extra=ALL_RANKS)
        leave(1)
    watchdog.close()
    shut_down_distributed()
    if not done:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
