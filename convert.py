"""Export a checkpoint of a run to a Hugging Face folder, or rewrite it for another parallel layout; on a CPU.

python convert.py export runs/tiny --output exported/tiny --dtype bf16
python convert.py export runs/finetuned --output exported/finetuned --checkpoint best
python convert.py reshard runs/tiny --expert-parallel-size 1 --world-size 1 --zero-stage 3
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import os
import sys

from common.arguments import Parser, positive
from common.exit_codes import USER_ERROR
from common.logs import get_logger
from common.paths import check_can_write, path_argument
from common.program import begin, run
from training.config.errors import ConfigError
from training.export.folders import check_run, check_step

logger = get_logger("convert")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export", help="write a folder for Hugging Face's from_pretrained, which needs nothing of this project"
    )
    export.add_argument("--output", type=path_argument, required=True, help="folder to create")
    export.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="dtype of weights (default: fp32)")
    export.add_argument(
        "--routing",
        choices=("dropless", "trained"),
        default="dropless",
        help="dropless (default): every token is served, so outputs do not depend on the batch; trained: capacity and "
        "random choices as in training",
    )
    export.add_argument(
        "--vocabulary", type=path_argument, metavar="FOLDER", help="of the run's spiece.model, if the run has no copy"
    )
    export.add_argument(
        "--checkpoint", metavar="STEP", help="of the run: a step, best or best:TASK (default: the newest)"
    )
    reshard = commands.add_parser(
        "reshard",
        help="write one file per rank of another layout; optional, since train.py --resume reads any layout",
    )
    for option, meaning in (
        ("--expert-parallel-size", "ranks that share one copy of the experts"),
        ("--world-size", "ranks, and files"),
    ):
        reshard.add_argument(option, type=positive, required=True, metavar="N", help=meaning)
    reshard.add_argument(
        "--zero-stage", type=int, required=True, choices=(0, 1, 2, 3), help="ZeRO stage that will resume from it"
    )
    for command in (export, reshard):
        command.add_argument("run", type=path_argument, help="run folder, such as runs/tiny")
    return parser.parse_args()


def check_folders(arguments: argparse.Namespace) -> None:
    """Check what needs no torch. Raises ConfigError or ValueError."""
    check_run(arguments.run)
    if arguments.command == "reshard":
        check_can_write(arguments.run / "checkpoints", "RUN")
        return
    check_step(arguments.run, arguments.checkpoint)
    if arguments.output.exists():
        raise ConfigError(f"--output {arguments.output} exists: remove it, or name another folder")
    check_can_write(arguments.output, "--output")


def main() -> None:
    """Convert, and log what was written."""
    begin()
    arguments = parse_arguments()
    try:
        check_folders(arguments)
        logger.info("%s: importing torch", arguments.run)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from training.checkpoint.reshard import reshard, resume_command
        from training.export.export import DTYPES, export

        if arguments.command == "export":
            source, routing = export(
                arguments.run,
                arguments.output,
                DTYPES[arguments.dtype],
                routing=arguments.routing,
                vocabulary=arguments.vocabulary,
                step=arguments.checkpoint,
            )
            logger.info(f"{source} → {arguments.output}\n{routing}")
        else:
            size, world, stage = arguments.expert_parallel_size, arguments.world_size, arguments.zero_stage
            folder = reshard(arguments.run, size, world, stage)
            logger.info(f"{folder}; continue with:\n{resume_command(arguments.run, folder)}")
    except ValueError as error:
        logger.error(str(error))
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    run(main)
