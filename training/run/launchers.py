"""Which launcher started this process, as its environment says: deepspeed, torchrun, srun, an MPI launcher or none.

RANK, which deepspeed and torchrun set, wins over the variables of an allocation or of an MPI launcher around it. What
is incomplete or contradicts itself is refused: a process that takes itself for another rank overwrites that rank's
files, or waits for ranks that never come. Empty variables count as unset.
"""

import os
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from common.ports import FIRST, LAST
from training.config.errors import ConfigError

DEFAULT_PORT = 29500  # of deepspeed and torchrun
LOOPBACK = "127.0.0.1"

Environment = Mapping[str, str]


class Launch(NamedTuple):
    """What a launcher tells a process."""

    launcher: str
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    address: str | None = None  # where the ranks meet; None: not said
    port: int | None = None
    notice: str | None = None  # for the user


class LaunchError(ConfigError):
    """The environment contradicts the launcher ``around``, which knows where the other ranks wait."""

    def __init__(self, message: str, around: Launch):
        super().__init__(message)
        self.around = around


class _Names(NamedTuple):
    """The variables of an MPI launcher."""

    launcher: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str
    job: str  # the same text on all ranks, another one for another job


MPI = (
    _Names("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
           "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"),
    _Names("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
           "MV2_COMM_WORLD_LOCAL_SIZE", "PMI_JOBID"),
    _Names("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_JOBID"),
)  # fmt: skip
RANK_NAMES = ("RANK", *(names.rank for names in MPI), "SLURM_PROCID")
# Set by torchrun and deepspeed for the ranks that they start: those need not be numbered as the tasks around them.
MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")


def read_launch(environment: Environment) -> Launch:
    """Return what the environment says about this process.

    Raises:
        ConfigError: variables are missing, malformed or contradict each other; names them.
    """
    around = _around(environment)
    if _text(environment, "RANK") is not None:
        launch = _from_rank(environment, around)
    elif around is not None and around.world_size > 1:
        launch = around
        _check_same(environment, "WORLD_SIZE", around.world_size, around)
        _check_same(environment, "LOCAL_RANK", around.local_rank, around)
    else:
        launch = _alone(environment, around)
    if not launch.rank < launch.world_size:
        raise ConfigError(
            f"rank {launch.rank} of {launch.world_size} does not exist: RANK and WORLD_SIZE, or those of "
            f"{launch.launcher}, contradict each other: ranks are numbered from 0"
        )
    if not launch.local_rank < launch.local_world_size <= launch.world_size:
        raise ConfigError(
            f"local rank {launch.local_rank} of {launch.local_world_size} ranks on this host and {launch.world_size} "
            "in all: LOCAL_RANK, LOCAL_WORLD_SIZE (or LOCAL_SIZE) and WORLD_SIZE contradict each other"
        )
    return launch


def ends_all(launch: Launch, environment: Environment) -> bool:
    """Return whether the launcher ends all ranks when one fails; deepspeed and torchrun end those of a host."""
    marked = any(environment.get(mark) for mark in MARKS)
    return (
        launch.world_size == 1
        or launch.launcher == "mpirun"
        or (marked and launch.local_world_size == launch.world_size)
    )


def likely_rank(environment: Environment) -> int:
    """Return the rank that a process probably has whose environment was refused; 0 if nothing tells."""
    texts = (environment.get(name, "").strip() for name in RANK_NAMES)
    return next((int(text) for text in texts if re.fullmatch(r"[0-9]+", text)), 0)


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, such as ``node01`` of ``node[01-03,07],other``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")


def _from_rank(environment: Environment, around: Launch | None) -> Launch:
    """As deepspeed, torchrun or a user's own script sets RANK and WORLD_SIZE."""
    rank = _number(environment, "RANK")
    world_size = _needed(environment, "WORLD_SIZE", "RANK")
    marked = any(environment.get(mark) for mark in MARKS)
    if around is None or around.world_size != world_size or marked:
        around = None  # what is around says nothing about this rank
    elif around.rank != rank:
        raise LaunchError(
            f"RANK = {rank} but {around.launcher} started this process as rank {around.rank} of {world_size}: unset "
            "RANK and LOCAL_RANK before that, so that each process gets its own",
            around,
        )
    if around is not None:
        local_rank, local_world_size = around.local_rank, around.local_world_size
    elif world_size == 1:
        local_rank, local_world_size = 0, 1
    else:
        local_rank, local_world_size = _needed(environment, "LOCAL_RANK", "RANK"), world_size
    if _text(environment, "LOCAL_RANK") is not None:
        local_rank = _number(environment, "LOCAL_RANK")
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # torchrun, deepspeed
        if _text(environment, name) is not None:
            local_world_size = _number(environment, name)
    address, port = _meeting_point(environment)
    address = address or (around.address if around else None)
    port = port or (around.port if around else None)
    if world_size > 1:
        for name, value in (("MASTER_ADDR", address), ("MASTER_PORT", port)):
            if value is None:
                raise ConfigError(
                    f"WORLD_SIZE = {world_size} but {name} is not set: start the ranks with deepspeed, torchrun or "
                    f"srun, or set {name} to where rank 0 listens; for one process, unset WORLD_SIZE and RANK"
                )
    launcher = around.launcher if around else "the launcher"
    return Launch(launcher, rank, local_rank, world_size, local_world_size, address, port)


def _alone(environment: Environment, around: Launch | None) -> Launch:
    """One process, whatever MASTER_ADDR and MASTER_PORT are left in its environment."""
    world_size = 1 if _text(environment, "WORLD_SIZE") is None else _number(environment, "WORLD_SIZE")
    local_rank = 0 if _text(environment, "LOCAL_RANK") is None else _number(environment, "LOCAL_RANK")
    if world_size != 1 or local_rank:
        name = "LOCAL_RANK" if world_size == 1 else "WORLD_SIZE"
        raise ConfigError(
            f"{name} = {environment[name].strip()} but RANK is not set: start the ranks with deepspeed, torchrun or "
            f"srun; for one process, unset {name}"
        )
    tasks = _text(environment, "SLURM_NTASKS")
    if around is not None or _text(environment, "SLURM_PROCID") is None or tasks in (None, "1"):
        return Launch("none", 0, 0, 1, 1)
    notice = f"one process, though SLURM_NTASKS = {tasks}: start it with srun to train on all tasks of the job"
    return Launch("none", 0, 0, 1, 1, notice=notice)


def _around(environment: Environment) -> Launch | None:
    """The MPI launcher or srun that started this process, or the launcher of this process."""
    step = _slurm_step(environment)
    for names in MPI:
        if _text(environment, names.rank) is None:
            continue
        rank, size = _number(environment, names.rank), _needed(environment, names.world_size, names.rank)
        if step is not None and (step.rank, step.world_size) == (rank, size):
            return step  # srun speaks MPI's protocols, too, without the local ranks
        return _mpi(environment, names, rank, size)
    return step


def _mpi(environment: Environment, names: _Names, rank: int, size: int) -> Launch:
    if size == 1:
        return Launch(names.launcher, rank, 0, 1, 1)
    local_rank = _needed(environment, names.local_rank, names.rank)
    local_size = _needed(environment, names.local_world_size, names.rank)
    address, port = _meeting_point(environment)
    if address is None and local_size < size:
        raise ConfigError(
            f"{names.world_size} = {size} on several hosts but MASTER_ADDR is not set: set it to the host of rank 0, "
            "for OpenMPI with mpirun -x MASTER_ADDR=HOST"
        )
    job = _text(environment, names.job)
    port = port or (DEFAULT_PORT if job is None else _port_of(job))
    return Launch(names.launcher, rank, local_rank, size, local_size, address or LOOPBACK, port)


def _slurm_step(environment: Environment) -> Launch | None:
    """The task of a job step that srun started; None elsewhere, such as in a batch script."""
    if _text(environment, "SLURM_PROCID") is None:
        return None
    rank = _number(environment, "SLURM_PROCID")
    if _text(environment, "SLURM_STEP_NUM_TASKS") is None:
        if rank == 0:
            return None  # a batch script; SLURM_NTASKS is what it may start
        raise ConfigError(
            f"SLURM_PROCID = {rank} but SLURM_STEP_NUM_TASKS is not set: pass on what srun sets for its tasks"
        )
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    local_rank = 0 if size == 1 else _needed(environment, "SLURM_LOCALID", "SLURM_PROCID")
    hosts = next((text for kind in ("STEP", "JOB") if (text := _text(environment, f"SLURM_{kind}_NODELIST"))), None)
    one_host = hosts is None or not re.search(r"[,\[]", hosts)
    local_size = _tasks_of_host(environment, size if one_host else local_rank + 1)
    on_host = _text(environment, "SLURM_GTIDS")
    if on_host is not None and len(on_host.split(",")) != local_size:
        return None  # a batch script that was submitted from a step, whose variables it inherits
    if size > 1 and _text(environment, "SLURM_PTY_PORT") is not None and _has_terminal():
        return None  # a shell of srun --pty
    address, port = _meeting_point(environment)
    if size > 1 and address is None:
        if local_size == size:
            address = LOOPBACK
        elif hosts is not None:
            address = first_host(hosts)
        else:
            raise ConfigError(
                f"SLURM_STEP_NUM_TASKS = {size} on several hosts but SLURM_JOB_NODELIST is not set: set MASTER_ADDR to "
                "the first of them"
            )
    job = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return Launch("srun", rank, local_rank, size, local_size, address, port or _port_of(job))


def _tasks_of_host(environment: Environment, otherwise: int) -> int:
    """The tasks of this step on this host: ``2(x3),1`` lists them by host; ``otherwise`` without a list."""
    listed = _text(environment, "SLURM_STEP_TASKS_PER_NODE")
    if listed is None or _text(environment, "SLURM_NODEID") is None:
        return otherwise
    counts: list[int] = []
    for group in listed.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", group.strip())
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE = {listed} cannot be read: unset it, or set it as srun does")
        counts += [int(match[1])] * int(match[2] or 1)
    index = _number(environment, "SLURM_NODEID")
    if index >= len(counts):
        raise ConfigError(f"SLURM_NODEID = {index} but SLURM_STEP_TASKS_PER_NODE = {listed} has {len(counts)} hosts")
    return counts[index]


def _meeting_point(environment: Environment) -> tuple[str | None, int | None]:
    port = None
    if _text(environment, "MASTER_PORT") is not None:
        port = _number(environment, "MASTER_PORT")
        if not 0 < port < 2**16:
            raise ConfigError(f"MASTER_PORT = {port} is no port: set a number from 1 to 65535")
    return _text(environment, "MASTER_ADDR"), port


def _port_of(job: str) -> int:
    """A port that all ranks of a job derive alike, and other jobs of the host hardly."""
    return FIRST + zlib.crc32(job.encode()) % (LAST - FIRST)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which tasks of srun have not."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def _text(environment: Environment, name: str) -> str | None:
    return environment.get(name, "").strip() or None


def _number(environment: Environment, name: str) -> int:
    text = environment[name].strip()
    if not re.fullmatch(r"[0-9]+", text):
        raise ConfigError(f"{name} = {text!r} in the environment is no whole number from 0: unset it, or mend it")
    return int(text)


def _needed(environment: Environment, name: str, because: str) -> int:
    if _text(environment, name) is None:
        raise ConfigError(
            f"{because} = {environment[because].strip()} but {name} is not set: set it, or start the ranks with "
            f"deepspeed, torchrun or srun; for one process, unset {because}"
        )
    return _number(environment, name)


def _check_same(environment: Environment, name: str, value: int, around: Launch) -> None:
    if _text(environment, name) is not None and _number(environment, name) != value:
        raise LaunchError(
            f"{name} = {environment[name].strip()} contradicts {around.launcher}, which says {value}: unset {name}",
            around,
        )
