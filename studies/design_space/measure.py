"""Times the steps of all trials in turn, on the text of the base configuration: for a machine that does nothing else.

Every turn is a new process, which builds the model with its initial weights, makes one step to warm up, and times the
next. A slow drift of the machine then meets all trials alike. On a CPU the experts compute on the tokens in their
capacity slots alone, so the times depend on the routing, which is that of the first steps.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from studies.design_space.machine import circumstances, device_name
from studies.design_space.rows import TIME, Row, append_row, identity, read_rows
from studies.design_space.trials import Trial
from training.config.run import RunConfig, validate
from training.cost import cost_of

STEPS = 5  # that a turn times
PRELOADED = ["deepspeed", "training.engine.build", "training.engine.step", "training.inputs"]


def measure_all(trials: Sequence[Trial], base: str, path: Path, rounds: int) -> int:
    """Time the trials that have no measurement on this machine, and append a row for each.

    Args:
        trials: of the study; all run on one process.
        base: path of the base configuration.
        path: of the file of rows.
        rounds: turns of each trial.

    Returns:
        The exit code: 1 if a trial failed.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    threads = None if on_gpu else torch.get_num_threads()
    device = device_name()
    there = set(map(identity, read_rows(path)))
    waiting = [t for t in trials if (TIME, t.key, (device, threads)) not in there]
    print(f"{len(trials) - len(waiting)} measured already; {len(waiting)} to time, {rounds} turns each", flush=True)
    if on_gpu:
        context: Any = multiprocessing.get_context("spawn")  # a fork cannot use a GPU that its parent has looked at
    else:
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    turns: dict[str, list[dict[str, Any]]] = {trial.name: [] for trial in waiting}
    failed: set[str] = set()
    for number in range(1, rounds + 1):
        for trial in waiting:
            if trial.name in failed:
                continue
            turn = _in_a_process(context, trial.config)
            if "error" in turn:
                failed.add(trial.name)
                print(f"{trial.name} failed: {turn['error']}", flush=True)
                continue
            turns[trial.name].append(turn)
            fastest = min(turn["step_seconds"])
            print(f"[{number}/{rounds}] {trial.name}: {1e3 * fastest:.1f} ms a step", flush=True)
    for trial in waiting:
        if trial.name not in failed:
            append_row(path, _row(trial, base, turns[trial.name], device, threads))
    return int(bool(failed))


def _row(trial: Trial, base: str, turns: Sequence[dict[str, Any]], device: str, threads: int | None) -> Row:
    seconds = [s for turn in turns for s in turn["step_seconds"]]
    memory = [turn["peak_memory_bytes"] for turn in turns if turn["peak_memory_bytes"] is not None]
    return {
        "kind": TIME,
        "variants": list(trial.names),
        "key": trial.key,
        "config": base,
        "settings": trial.overrides,
        "rounds": len(turns),
        "steps": STEPS,
        "step_seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "processor_seconds": min(s for turn in turns for s in turn["processor_seconds"]),
        "tokens_per_step": statistics.fmean(t for turn in turns for t in turn["tokens"]),
        "peak_memory_bytes": max(memory, default=None),
        **cost_of(trial.config).as_row(),
        "device": device,
        "threads": threads,
        **circumstances(),
    }


def _in_a_process(context: Any, config: RunConfig) -> dict[str, Any]:
    """Return what ``take_turn`` returns in a new process, or ``error``."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_turn, args=(theirs, config.model_dump()))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        found = {"error": f"its process ended with code {process.exitcode}"}
    process.join()
    return found


def _turn(pipe: Connection, values: dict[str, Any]) -> None:
    try:
        pipe.send(take_turn(validate(values)))
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})


def take_turn(config: RunConfig) -> dict[str, Any]:
    """Time steps of a new model in this process, which must have no process group yet.

    Returns:
        ``step_seconds``, ``processor_seconds`` and ``tokens`` of each step; ``peak_memory_bytes``, of tensors on a GPU
        or of the process, None where the system does not say.
    """
    from data.streaming.loader import PretrainingLoader
    from data.tokenizer import Tokenizer
    from training.config.deepspeed import accumulation_steps
    from training.run.distributed import initialize_distributed, shut_down_distributed
    from training.run.process import Process

    device = initialize_distributed(Process(0, 0, 1, 1), config.training.timeout_seconds)
    import torch

    from training.engine.batches import to_device
    from training.engine.build import build_engine
    from training.engine.step import update

    data = config.data.model_copy(update={"num_workers": 0})
    tokenizer = Tokenizer(data.vocabulary)
    loader = PretrainingLoader(data, tokenizer, batch_size=config.training.micro_batch_size, rank=0, world_size=1)
    accumulated = accumulation_steps(config, 1)
    batches = [[to_device(loader.next_batch(), device) for _ in range(accumulated)] for _ in range(STEPS + 1)]
    engine = build_engine(config, 1, device)
    _forget_peak(device)
    wall, processor, tokens = [], [], []
    for step, micro_batches in enumerate(batches):
        began, used = time.perf_counter(), time.process_time()
        _, totals = update(engine, micro_batches, 0, config.training.seed, step, 0)
        if device != "cpu":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
        tokens.append(totals.tokens)
    peak = _peak(device)
    loader.close()
    shut_down_distributed()
    return {
        "step_seconds": wall[1:],
        "processor_seconds": processor[1:],
        "tokens": tokens[1:],
        "peak_memory_bytes": peak,
    }


def _forget_peak(device: str) -> None:
    """Let the peak of this process's memory begin here."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak(device: str) -> int | None:
    """Return the most bytes since ``_forget_peak``."""
    import torch

    if device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
