"""Time of an optimizer step: Adafactor beside torch's AdamW, fused and foreach, under the same ZeRO stage.

python -m benchmarks.optimizer_step --zero-stage 1
python -m benchmarks.optimizer_step --zero-stage 3 --layers 8 --experts 8

Everything is measured twice, with the engines built in either order, so that the order favours neither optimizer.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from common.ports import free_port
from common.program import print_anything
from common.project import ROOT
from common.strict_json import to_json

# Bytes that a step must move per float32 weight that a rank updates, if the weights do not fit its caches.
# AdamW reads gradient, weight and two moments, and writes weight and moments. Adafactor's three passes, with a sum over
# ranks after each of the first two, read gradient, gradient and weight, gradient and weight; the last one writes the
# weight.
BYTES_PER_WEIGHT = {"adafactor": 6 * 4, "adamw": 7 * 4}
RUNS = {"adafactor": {}, "adamw_fused": {"fused": True}, "adamw_foreach": {"foreach": True}}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--ranks", type=int, default=2, help="gloo processes (default 2)")
    parser.add_argument("--expert-parallel-size", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4, help="blocks of encoder and decoder each (st-moe-base: 12)")
    parser.add_argument("--experts", type=int, default=4, help="experts of each sparse layer (st-moe-base: 16)")
    parser.add_argument(
        "--repetitions", type=int, default=9, help="timed steps of each optimizer in each order (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def build(name: str, options: argparse.Namespace) -> Any:
    """Build the engine of a model with st-moe-base's widths and the named optimizer; collective."""
    from training.config.run import validate
    from training.engine.build import build_engine

    model = {"num_layers": options.layers, "num_experts": options.experts}  # the rest default to st-moe-base
    training = {
        "global_batch_size": options.ranks, "micro_batch_size": 1, "precision": "fp32",
        "deepspeed_config": str(ROOT / "ds_configs" / f"zero{options.zero_stage}.json"),
    }  # fmt: skip
    config = validate(
        {
            "model": model,
            "optimizer": {"name": name, "gradient_clipping": 0.0},
            "parallel": {"expert_parallel_size": options.expert_parallel_size},
            "training": training,
        }
    )
    return build_engine(config, options.ranks, "cpu")


class Stopwatch:
    """Seconds within the torch optimizer's ``step()``, which an engine's step may call several times."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.seconds = self.began = 0.0
        optimizer.register_step_pre_hook(lambda *_: self._start())
        optimizer.register_step_post_hook(lambda *_: self._stop())

    def _start(self) -> None:
        self.began = time.perf_counter()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self.began


def memory_bandwidth() -> float:
    """Measure the bytes per second that this rank reads and writes in place, while all other ranks do the same."""
    import deepspeed.comm as dist

    values, seconds = torch.ones(2**26), []
    for _ in range(7):
        dist.barrier()
        began = time.perf_counter()
        values.neg_()  # in place: a copy would also read the cache lines that it writes
        seconds.append(time.perf_counter() - began)
    return 2 * values.nbytes / statistics.median(seconds)


def measure(rank: int, options: argparse.Namespace, port: int, order: Sequence[str], out: Path) -> None:
    """Run one rank of the benchmark with the engines built in this order; rank 0 writes what it measured to ``out``."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(options.ranks), LOCAL_SIZE=str(options.ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    import deepspeed.comm as dist

    from training.run.distributed import initialize_distributed
    from training.run.process import Process

    initialize_distributed(Process.from_environment(), timeout_seconds=600)
    engines = {name: build(name, options) for name in order}
    watches = {name: Stopwatch(engine.basic_optimizer) for name, engine in engines.items()}
    generator = torch.Generator().manual_seed(rank)
    batch = {key: torch.randint(2, 32_000, (1, 64), generator=generator) for key in ("input_ids", "labels")}
    whole: dict[str, list[float]] = {run: [] for run in RUNS}
    inner: dict[str, list[float]] = {run: [] for run in RUNS}
    for repetition in range(1 + options.repetitions):  # the first is a warm-up
        for run, choice in RUNS.items():
            name = run.partition("_")[0]
            engine = engines[name]
            for group in engine.basic_optimizer.param_groups:
                group.update({"fused": None, "foreach": None} | choice if name == "adamw" else {})
            engine.backward(engine(**batch).loss)
            watches[name].seconds = 0.0
            dist.barrier()
            began = time.perf_counter()
            engine.step()
            dist.barrier()
            if repetition:
                whole[run].append(time.perf_counter() - began)
                inner[run].append(watches[name].seconds)
    adafactor = engines["adafactor"].basic_optimizer
    held = (state.partition.segments for state in adafactor.partition_states.values())
    weights = sum(segment.numel for segments in held for segment in segments)
    bandwidth = memory_bandwidth()
    if rank == 0:
        measured = {
            "whole": whole, "inner": inner, "weights": weights, "bandwidth": bandwidth,
            "bytes_reduced": adafactor.bytes_reduced // (1 + options.repetitions), "state": adafactor.state_nbytes,
        }  # fmt: skip
        out.write_text(to_json(measured), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def rows_of(measured: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return medians over the steps of all orders, and what bounds them, for each run."""
    rows = {}
    weights, bandwidth = measured[0]["weights"], statistics.median(m["bandwidth"] for m in measured)
    for run in RUNS:
        name = run.partition("_")[0]
        whole, inner = ([seconds for m in measured for seconds in m[kind][run]] for kind in ("whole", "inner"))
        rows[run] = {
            "step_seconds": statistics.median(whole),
            "optimizer_seconds": statistics.median(inner),
            "limit_seconds": BYTES_PER_WEIGHT[name] * weights / bandwidth,
            "bytes_read_and_written": BYTES_PER_WEIGHT[name] * weights,
            "bytes_all_reduced": measured[0]["bytes_reduced"] if name == "adafactor" else 0,
            "all_step_seconds": whole,
        }
    return rows


def report(options: argparse.Namespace, measured: Sequence[dict[str, Any]]) -> None:
    """Print the results as a table and write them as JSON."""
    rows, weights, state = rows_of(measured), measured[0]["weights"], measured[0]["state"]
    bandwidth = statistics.median(m["bandwidth"] for m in measured)
    peer = min((run for run in rows if run != "adafactor"), key=lambda run: rows[run]["step_seconds"])
    print(
        f"ZeRO {options.zero_stage}, {options.ranks} ranks, expert-parallel size {options.expert_parallel_size}, "
        f"st-moe-base with {options.layers} + {options.layers} layers and {options.experts} experts: {weights:,} "
        f"weights updated per rank, {state:,} bytes of Adafactor's state per rank; "
        f"{bandwidth / 1e9:.1f} GB/s of memory per rank; median of {len(measured)} x {options.repetitions}\n"
    )
    print(
        f"{'':14} {'step ms':>9} {'ratio':>6} {'optimizer ms':>13} {'ratio':>6} {'limit ms':>9} {'MB':>7} "
        f"{'kB reduced':>11}"
    )
    for run, row in rows.items():
        row["ratio"] = row["step_seconds"] / rows[peer]["step_seconds"]
        row["optimizer_ratio"] = row["optimizer_seconds"] / rows[peer]["optimizer_seconds"]
        print(
            f"{run:14} {row['step_seconds'] * 1e3:9.1f} {row['ratio']:6.2f} {row['optimizer_seconds'] * 1e3:13.1f} "
            f"{row['optimizer_ratio']:6.2f} {row['limit_seconds'] * 1e3:9.1f} "
            f"{row['bytes_read_and_written'] / 1e6:7.0f} {row['bytes_all_reduced'] / 1e3:11.1f}"
        )
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    versions = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"optimizer_step_zero{options.zero_stage}.json"
    values = settings | versions | {"weights_per_rank": weights, "state_bytes_per_rank": state, "runs": rows}
    path.write_text(to_json(values, indent=2) + "\n", encoding="utf-8")
    print(f"\n{path}")


def main() -> None:
    """Start the ranks."""
    print_anything()
    options = parse_arguments()
    measured = []
    for order in (list(BYTES_PER_WEIGHT), list(BYTES_PER_WEIGHT)[::-1]):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "measured.json"
            mp.start_processes(measure, (options, free_port(), order, out), nprocs=options.ranks, start_method="spawn")
            measured.append(json.loads(out.read_text(encoding="utf-8")))
    report(options, measured)


if __name__ == "__main__":
    main()
