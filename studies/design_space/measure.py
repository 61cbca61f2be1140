"""Times the steps of all trials in turn, on the text of the base configuration: for a machine that does nothing else.

Every turn is a new process, which builds the model with its initial weights, makes one step to warm up, and times the
next. A slow drift of the machine then meets all trials alike. On a CPU the experts compute on the tokens in their
capacity slots alone, so the times depend on the routing, which is that of the first steps.
"""

import multiprocessing
import os
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from studies.design_space.trials import Trial
from studies.results.machine import circumstances, device_name
from studies.results.rows import TIME, Row, append_row, of_kind, read_rows
from training.config.run import RunConfig, validate
from training.planning.cost import cost_of
from training.timed_steps import time_steps

STEPS = 5  # that a turn times
BESIDE = 0.5  # load of others up to which a measurement stands; those of a busier machine are made again
PRELOADED = ["deepspeed", "training.engine.build", "training.engine.step", "training.inputs"]


def measure_all(trials: Sequence[Trial], base: str, path: Path, rounds: int) -> int:
    """Time the trials that have no measurement on this machine while it was quiet, and append a row for each.

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
    most = (threads or 1) + BESIDE
    quiet = [row for row in of_kind(read_rows(path), TIME, [t.key for t in trials]) if row["load_average"] <= most]
    there = {(row["key"], row["device"], row["threads"]) for row in quiet}
    waiting = [trial for trial in trials if (trial.key, device, threads) not in there]
    print(f"{len(trials) - len(waiting)} measured already; {len(waiting)} to time, {rounds} turns each", flush=True)
    load = circumstances()["load_average"]
    if waiting and load > most:
        print(
            f"this machine is busy (load average {load:g}): these times will be made again by a later call", flush=True
        )
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
    """Return what ``time_steps`` returns in a new process, or ``error``."""
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
        pipe.send(time_steps(validate(values), STEPS))
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})
