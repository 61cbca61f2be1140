"""This process among all, and how processes join and leave the distributed run."""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from common.ports import free_port
from training.run.known_warnings import silence_known_warnings


@dataclass(frozen=True)
class Process:
    """This process among all, as the deepspeed launcher or torchrun sets it; a single one without a launcher."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> "Process":
        """Read RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_SIZE (deepspeed) or LOCAL_WORLD_SIZE (torchrun)."""
        read = os.environ.get
        world = int(read("WORLD_SIZE", "1"))
        local_world = read("LOCAL_SIZE") or read("LOCAL_WORLD_SIZE") or str(world)
        return cls(int(read("RANK", "0")), int(read("LOCAL_RANK", "0")), world, int(local_world))


def initialize_distributed(process: Process, timeout_seconds: float) -> str:
    """Start DeepSpeed's communication, NCCL on GPUs and gloo on a CPU, and select this process's device.

    Returns:
        The device's name, ``cpu`` or ``cuda:N``.
    """
    silence_known_warnings()
    import torch

    if torch.cuda.is_available():
        device = f"cuda:{process.local_rank}"
        torch.cuda.set_device(device)
    else:
        device = "cpu"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # ranks of one host share its cores
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // process.local_world_size))
    if process.world_size == 1 and "MASTER_ADDR" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))

    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # DeepSpeed would compile its shared-memory collectives at first use: a minute, and an error without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_seconds), verbose=False)
    return device


def shut_down_distributed() -> None:
    """Destroy the process groups, all ranks together: the threads of a remaining group abort an exiting process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process alone and at once with ``code``.

    Its process groups cannot be destroyed without the other ranks, and at a normal exit their threads would abort the
    process with another exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
