"""How processes join and leave the distributed run, each on its device."""

import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from common.exit_codes import USER_ERROR
from common.logs import ALL_RANKS, get_logger
from common.ports import free_port
from training.config.errors import ConfigError
from training.run.known_warnings import silence_known_warnings
from training.run.launchers import LOOPBACK
from training.run.process import Process
from training.run.rendezvous import meet

WAIT_FOR_RANK_0_SECONDS = 10

logger = get_logger(__name__)


def initialize_distributed(process: Process, timeout_seconds: float, store: Any = None) -> str:
    """Start DeepSpeed's communication, NCCL on GPUs and gloo on a CPU, and select this process's device.

    Args:
        process: this process among all.
        timeout_seconds: of collectives.
        store: from ``rendezvous.meet``; None: meet here.

    Returns:
        The device's name, ``cpu`` or ``cuda:N``.

    Raises:
        ConfigError: there is no device for this rank, or the ranks cannot meet where the environment says.
        FailedStartError: see ``rendezvous.meet``.
    """
    silence_known_warnings()
    import torch
    import torch.distributed as dist

    if process.world_size == 1 and "RANK" not in os.environ:  # a process that asked no launcher
        process.export(LOOPBACK, free_port())
    store = meet(process, timeout_seconds) if store is None else store
    options: dict[str, Any] = {}
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = f"cuda:{_device_index(process, store)}"
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = device.removeprefix("cuda:")  # DeepSpeed takes it for the device's number
        if process.world_size > 1:
            options["device_id"] = torch.device(device)
    else:
        device = "cpu"
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # ranks of one host share its cores
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // process.local_world_size))
        if process.world_size > process.local_world_size:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(process, store))

    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # DeepSpeed would compile its shared-memory collectives at first use: a minute, and an error without a compiler.
        # In place of the table that it makes at first use, by compiling a test program for each of its operations.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        store=dist.PrefixStore("group", store),
        rank=process.rank,
        world_size=process.world_size,
        timeout=timedelta(seconds=timeout_seconds),
        **options,
    )
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_seconds), verbose=False)
    return device


def shut_down_distributed() -> None:
    """Destroy the process groups, all ranks together: the threads of a remaining group abort an exiting process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def refuse(message: str, process: Process) -> NoReturn:
    """Report a user's mistake once, however many ranks find it, and end this process with ``USER_ERROR``.

    For programs whose launcher ends all ranks when one exits.
    """
    if process.rank != 0:
        time.sleep(WAIT_FOR_RANK_0_SECONDS)  # after this wait, only this rank knows of the mistake
    logger.error(message, extra=ALL_RANKS)
    leave(USER_ERROR)


def leave(code: int) -> NoReturn:
    """End this process alone and at once with ``code``.

    Its process groups cannot be destroyed without the other ranks, and at a normal exit their threads would abort the
    process with another exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk
            stream.flush()
    os._exit(code)


def _device_index(process: Process, store: Any) -> int:
    """The number of this rank's GPU: its local rank, or 0 where each process sees one GPU, as Slurm can show them."""
    import torch

    count, ranks = torch.cuda.device_count(), process.local_world_size
    visible = f"CUDA_VISIBLE_DEVICES = {os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}"
    fix = f"start one rank per GPU; this host, {socket.gethostname()}, has {ranks} ranks"
    if count > 1:
        if process.local_rank >= count:
            raise ConfigError(f"local rank {process.local_rank} sees {count} GPUs ({visible}): {fix}")
        return process.local_rank
    if ranks > 1 and store.add(f"device/{torch.cuda.get_device_properties(0).uuid}", 1) > 1:
        raise ConfigError(f"local rank {process.local_rank} sees one GPU, which another rank has ({visible}): {fix}")
    return 0


def _interface(process: Process, store: Any) -> str:
    """The network interface by which this host reaches another one: gloo would take that of the host's name."""
    import psutil

    address = _source_address(os.environ["MASTER_ADDR"])
    store.set(f"start/address/{process.rank}", address)
    if _is_loopback(address):  # rank 0's host, whose name may mean the loopback here: see who reaches it from elsewhere
        others = (store.get(f"start/address/{rank}").decode() for rank in range(process.world_size))
        address = next((_source_address(other) for other in others if not _is_loopback(other)), address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    raise ConfigError(f"no network interface has the address {address}: set GLOO_SOCKET_IFNAME")


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _source_address(host: str) -> str:
    """The address of this host from which it reaches ``host``; nothing is sent."""
    family, _, _, _, to = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect(to)
        return str(s.getsockname()[0])
