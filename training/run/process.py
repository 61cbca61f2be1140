"""This process among all."""

import os
from dataclasses import dataclass

from common.once_per_host import Launch as HostLaunch
from common.once_per_host import parent_start
from common.ports import free_port
from training.run.launchers import LOOPBACK, Launch, ends_all, read_launch


@dataclass(frozen=True)
class Process:
    """This process among all, as its launcher says; a single one without a launcher."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    launcher_ends_all: bool = True  # when one rank fails; srun and the launcher of another host do not
    notice: str | None = None  # about the launcher, for the user

    @classmethod
    def from_environment(cls) -> "Process":
        """Read what deepspeed, torchrun, srun or an MPI launcher says, and pass it on as RANK, WORLD_SIZE, ….

        DeepSpeed, and processes that this one starts, read those variables, whichever launcher there was.

        Raises:
            ConfigError: what the launcher says is incomplete or contradicts itself; names the variables.
        """
        return cls.of(read_launch(os.environ))

    @classmethod
    def of(cls, launch: Launch) -> "Process":
        """Return the process that a launcher describes, and pass it on."""
        address, port = launch.address, launch.port
        if address is None or port is None:  # one process: nobody else needs to find it
            address, port = LOOPBACK, free_port()
        ranks = (launch.rank, launch.local_rank, launch.world_size, launch.local_world_size)
        process = cls(*ranks, launcher_ends_all=ends_all(launch, os.environ), notice=launch.notice)
        process.export(address, port)
        return process

    @property
    def on_this_host(self) -> HostLaunch | None:
        """The ranks that the launcher has started on this host; None if there is one, or if they cannot be told."""
        parent = parent_start()
        if self.local_world_size == 1 or parent is None:
            return None
        words = (parent, *(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun itself lives on
        return HostLaunch(" ".join([*words, attempt]), self.local_world_size)

    def export(self, address: str, port: int) -> None:
        """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
        os.environ.update(
            RANK=str(self.rank), LOCAL_RANK=str(self.local_rank), WORLD_SIZE=str(self.world_size),
            LOCAL_WORLD_SIZE=str(self.local_world_size), MASTER_ADDR=address, MASTER_PORT=str(port),
        )  # fmt: skip
