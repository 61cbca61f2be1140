"""Times optimizer steps of a new model on the text of a run, without a run: time and memory of a configuration."""

import time
from pathlib import Path
from typing import Any

from training.config.run import RunConfig


def time_steps(config: RunConfig, steps: int) -> dict[str, Any]:
    """Time steps of a new model in this process, which must have no process group yet; one more step warms up.

    Args:
        config: of a run of one rank; nothing is written.
        steps: to time.

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
    batches = [[to_device(loader.next_batch(), device) for _ in range(accumulated)] for _ in range(steps + 1)]
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
