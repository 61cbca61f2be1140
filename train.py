"""Pretrain an ST-MoE model, or go on with a run.

deepspeed --num_gpus 2 train.py --config configs/tiny.yaml training.steps=100
python train.py --config configs/tiny.yaml parallel.expert_parallel_size=1
"""

import argparse
import sys
import time
from typing import NoReturn

from data.retry import DataError
from training.config import load_config
from training.help import describe_keys
from training.layout import Layout, initialise_distributed, shut_down_distributed
from training.preflight import prepare

EXIT_USER_ERROR = 2
WAIT_FOR_RANK_0_SECONDS = 10


def parse_arguments() -> argparse.Namespace:
    """The command line; ``key=value`` overrides are positional."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="keys:\n" + describe_keys(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="the run's YAML file, such as configs/tiny.yaml")
    parser.add_argument("--resume", action="store_true", help="continue from the run's newest checkpoint")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as training.steps=100")
    return parser.parse_intermixed_args()


def refuse(message: str, layout: Layout) -> NoReturn:
    """Print a user's mistake once, whichever ranks see it, and exit with code 2."""
    if layout.rank != 0:
        # The launcher ends all ranks when rank 0 exits. Still here after a while: this rank alone saw the mistake.
        time.sleep(WAIT_FOR_RANK_0_SECONDS)
        message = f"rank {layout.rank}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


def main() -> None:
    """Check everything that can be checked, then train."""
    arguments = parse_arguments()
    layout = Layout.from_environment()
    try:
        config = load_config(arguments.config, arguments.overrides)
        inputs = prepare(config, layout, arguments.resume)
    except ValueError as error:
        refuse(str(error), layout)
    device = initialise_distributed(layout, config.training.timeout_seconds)
    from training.trainer import Trainer  # torch and DeepSpeed are heavy: imported when all is checked

    trainer = Trainer(config, layout, inputs, device)
    try:
        trainer.train()
    except DataError as error:
        refuse(str(error), layout)
    shut_down_distributed()


if __name__ == "__main__":
    main()
