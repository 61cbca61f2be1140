"""What watching a run costs: the share of a step's time that everything in ``training.monitor`` takes.

python -m benchmarks.monitoring [--blocks 40] [--every 10] [key=value ...]

Two ranks train configs/tiny.yaml. Blocks of steps that end with a row are made in turn with everything on and with
everything off, in the order on, off, off, on, so that both see the same machine. Evaluations, which add pictures and
examples, are timed alone and shared out over the default ``training.eval_every`` steps. Beside a busy machine's
wall-clock time, the processor time of rank 0 says what the work itself is.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.multiprocessing as mp

from common.ports import free_port
from common.program import print_anything
from common.project import ROOT

RANKS = 2
WARMUP_BLOCKS, EVALUATIONS = 2, 4
Seconds = dict[bool, list[tuple[float, float]]]  # by whether everything is on: wall-clock and processor time


def main() -> None:
    """Measure and print."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="blocks of steps, half of them with everything on")
    parser.add_argument("--every", type=int, default=10, help="training.log_every, the steps of a block")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of configs/tiny.yaml")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        values = [*arguments.overrides, f"training.output_dir={folder}", f"training.log_every={arguments.every}"]
        out = Path(folder) / "seconds.pt"
        settings = (free_port(), values, arguments.blocks, out)
        mp.start_processes(_rank, settings, nprocs=RANKS, start_method="spawn")
        steps, evaluations, eval_every = torch.load(out, weights_only=True)
    report(steps, evaluations, arguments.every, eval_every)


def report(steps: Seconds, evaluations: Seconds, every: int, eval_every: int) -> None:
    """Print both costs and their sum."""
    print(
        f"{len(steps[False])} blocks of {every} steps without and with everything; an evaluation in {eval_every} steps"
    )
    for number, kind in enumerate(("wall-clock time", "processor time of rank 0")):
        off, on, off_evaluation, on_evaluation = (
            statistics.median(taken[number] for taken in seconds[is_on])
            for seconds in (steps, evaluations)
            for is_on in (False, True)
        )
        of_rows, of_evaluations = (on - off) / every, (on_evaluation - off_evaluation) / eval_every
        step = off / every
        print(
            f"{kind}: a step without {1e3 * step:.2f} ms; rows {1e3 * of_rows:+.3f} ms per step, "
            f"evaluations {1e3 * of_evaluations:+.3f} ms per step; together {(of_rows + of_evaluations) / step:+.2%}"
        )


def _rank(rank: int, port: int, values: list[str], blocks: int, out: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    import deepspeed.comm as dist

    from training.config.run import load_config
    from training.config.training import TrainingConfig
    from training.inputs import prepare
    from training.run.distributed import initialize_distributed
    from training.run.process import Process
    from training.trainer import Trainer

    process = Process.from_environment()
    config = load_config(ROOT / "configs" / "tiny.yaml", values)
    inputs = prepare(config, process, resume=False)
    initialize_distributed(process, timeout_seconds=300)
    watchdog: Any = SimpleNamespace(enter=lambda *_: None)
    trainer = Trainer(config, process, inputs, "cpu", lambda: False, watchdog)
    switch = _switch(trainer)

    def block() -> None:
        for _ in range(config.training.log_every):
            terms, _ = trainer.train_step()
        trainer.log(terms)

    def evaluation() -> None:
        trainer.evaluate()

    steps = _interleaved(block, switch, blocks + WARMUP_BLOCKS)
    evaluations = _interleaved(evaluation, switch, 2 * EVALUATIONS)
    if rank == 0:
        without_warmup = {on: seconds[WARMUP_BLOCKS // 2 :] for on, seconds in steps.items()}
        torch.save((without_warmup, evaluations, TrainingConfig().eval_every), out)
    dist.barrier()
    inputs.loader.close()
    dist.destroy_process_group()


def _switch(trainer: Any) -> Callable[[bool], None]:
    """Return what turns everything in ``training.monitor`` on or off, in the same run."""
    from training.config.monitor import MonitorConfig
    from training.monitoring.examples import HeldOutExamples
    from training.monitoring.monitors.all import Monitors

    config, engine = trainer.config, trainer.engine
    nothing = config.training.model_copy(update={"monitor": MonitorConfig(routing=False, pictures=False, examples=0)})
    without = config.model_copy(update={"training": nothing})
    monitors = {
        True: trainer.monitors,
        False: Monitors(without, trainer.model_config, engine, trainer.inputs.loader, trainer.device),
    }
    examples = {True: trainer.examples, False: HeldOutExamples(0, engine.module, trainer.inputs.tokenizer)}

    def switch(on: bool) -> None:
        trainer.monitors, trainer.examples = monitors[on], examples[on]
        trainer.throughput = trainer.monitors.throughput
        trainer.throughput.restart()

    return switch


def _interleaved(call: Callable[[], None], switch: Callable[[bool], None], calls: int) -> Seconds:
    """Time calls on, off, off, on, …, between barriers."""
    import deepspeed.comm as dist

    seconds: Seconds = {True: [], False: []}
    for number in range(calls):
        on = number % 4 in (0, 3)
        switch(on)
        dist.barrier()
        began, used = time.perf_counter(), time.process_time()
        call()
        dist.barrier()
        seconds[on].append((time.perf_counter() - began, time.process_time() - used))
    return seconds


if __name__ == "__main__":
    main()
