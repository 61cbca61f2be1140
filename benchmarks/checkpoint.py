"""Stall of training and time to disk of a checkpoint, written in the background or not: st-moe-base, one process.

python -m benchmarks.checkpoint --folder /fast/disk
python -m benchmarks.checkpoint --layers 4 --experts 4     # less memory
"""

import argparse
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common.program import print_anything
from common.project import ROOT
from common.strict_json import to_json
from data.config import DataConfig
from model.size import count_parameters
from training.config.run import RunConfig, validate
from training.run.distributed import initialize_distributed
from training.run.process import Process


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write, and remove again (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of encoder and decoder each (st-moe-base: 12)")
    parser.add_argument("--experts", type=int, default=16, help="experts of each sparse layer (st-moe-base: 16)")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints to write (%(default)s)")
    return parser.parse_args()


def make_config(options: argparse.Namespace, folder: Path, *, background: bool) -> RunConfig:
    """Make a configuration without ZeRO, whose copies of weights and gradients are not part of the measurement."""
    return validate(
        {
            "model": {"num_layers": options.layers, "num_experts": options.experts},  # else st-moe-base's, by default
            "data": DataConfig().model_dump(),
            "optimizer": {"name": "adafactor"},
            "training": {
                "global_batch_size": 1, "micro_batch_size": 1, "precision": "fp32", "output_dir": str(folder),
                "name": "background" if background else "waiting", "keep_checkpoints": 1,
                "save_in_background": background, "deepspeed_config": str(ROOT / "ds_configs" / "zero0.json"),
            },
        }
    )  # fmt: skip


def measure(engine: Any, config: RunConfig, saves: int) -> list[dict[str, float]]:
    """Save repeatedly; return seconds of stall, seconds to disk and bytes of each save.

    Raises:
        RuntimeError: a checkpoint could not be written.
    """
    from training.checkpoint.capture import Moment
    from training.checkpoint.saver import Saver

    saver, found = Saver(config, str(engine.device)), []
    for step in range(1, saves + 1):
        data = {"identity": {}, "next_example": step, "streams": {}}
        saver.start(engine, Moment(step, 0, data, guard={}, evaluated=None, metrics_bytes=0, code={}))
        saved = saver.wait()
        if saved is None or saved.error is not None:
            raise RuntimeError(f"not written: {saved}")
        found.append({"stall_seconds": saved.stall_seconds, "save_seconds": saved.seconds, "bytes": saved.nbytes})
    return found


def main() -> None:
    """Measure both ways of saving; print a table and a line of JSON."""
    print_anything()
    options = parse_arguments()
    device = initialize_distributed(Process(0, 0, 1, 1), 600.0)
    from training.engine.build import build_engine

    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        began = time.monotonic()
        engine = build_engine(make_config(options, folder, background=True), 1, device)
        total, _ = count_parameters(make_config(options, folder, background=True).st_moe_config())
        print(f"{total:,} parameters, engine built in {time.monotonic() - began:.0f} s")
        results = {
            name: measure(engine, make_config(options, folder, background=name == "background"), options.saves)
            for name in ("background", "waiting")
        }
    finally:
        shutil.rmtree(folder)
    print(f"{'save':<12} {'stall, s':>9} {'on disk, s':>11} {'GB':>6} {'GB/s':>6}")
    for name, saves in results.items():
        for number, save in enumerate(saves, start=1):
            gigabytes = save["bytes"] / 1e9
            print(
                f"{name} {number:<{11 - len(name)}} {save['stall_seconds']:>9.2f} {save['save_seconds']:>11.2f} "
                f"{gigabytes:>6.2f} {gigabytes / save['save_seconds']:>6.2f}"
            )
    print(to_json({"machine": platform.processor() or platform.machine(), "parameters": total, **results}))


if __name__ == "__main__":
    main()
