"""Turn a run's newest checkpoint into a Hugging Face folder, or cut its files for another parallel layout; on a CPU.

python convert.py export runs/tiny --output exported/tiny --dtype bf16
python convert.py reshard runs/tiny --expert-parallel-size 1 --world-size 1 --zero-stage 3
"""

import argparse
import os
import sys
from pathlib import Path

from common.exit_codes import USER_ERROR
from common.logs import configure_logging


def positive(text: str) -> int:
    """Type of an option."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a folder for StMoeForConditionalGeneration.from_pretrained")
    export.add_argument("--output", type=Path, required=True, help="the folder to make")
    export.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")
    reshard = commands.add_parser(
        "reshard",
        help="one file per rank of another layout; train.py --resume does without: it reads any layout",
    )
    for option, meaning in (
        ("--expert-parallel-size", "ranks that share one copy of the experts"),
        ("--world-size", "ranks, and files"),
    ):
        reshard.add_argument(option, type=positive, required=True, metavar="N", help=meaning)
    reshard.add_argument("--zero-stage", type=int, required=True, choices=(0, 1, 2, 3))
    for command in (export, reshard):
        command.add_argument("run", type=Path, help="the run's folder, such as runs/tiny")
    return parser.parse_args()


def main() -> None:
    """Convert and say what was made."""
    arguments = parse_arguments()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from training.checkpoint.export import DTYPES, export
    from training.checkpoint.reshard import reshard

    configure_logging()
    try:
        if arguments.command == "export":
            source = export(arguments.run, arguments.output, DTYPES[arguments.dtype])
            print(f"{source} → {arguments.output}, for StMoeForConditionalGeneration.from_pretrained")
        else:
            size, world, stage = arguments.expert_parallel_size, arguments.world_size, arguments.zero_stage
            print(
                f"{reshard(arguments.run, size, world, stage)}; go on with:\n"
                f"deepspeed --num_gpus {world} train.py --config {arguments.run}/config.yaml --resume "
                f"parallel.expert_parallel_size={size} training.deepspeed_config=ds_configs/zero{stage}.json"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
