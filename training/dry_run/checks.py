"""What is refused before anything is imported or built: a rank, a layout or streams that cannot be. Without torch."""

import argparse
from typing import Any, NamedTuple

from common.arguments import positive
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.planning.display.options import add_shared_arguments
from training.planning.layout import Layout, checked_layout
from training.run.process import Process

GPUS_PER_NODE = 8
CARD = "h100-80gb"


class Cluster(NamedTuple):
    """The cluster that is asked for, and which rank of it.

    Attributes:
        world_size: ranks in all.
        rank: the one to be.
        gpus_per_node: ranks of a node.
        card: name of the GPUs, see ``training.planning.cards``.
        reserve: GiB of a card for what is no tensor; None: as ``plan.py``.
    """

    world_size: int
    rank: int = 0
    gpus_per_node: int = GPUS_PER_NODE
    card: str = CARD
    reserve: float | None = None

    @property
    def process(self) -> Process:
        """The process that a launcher would start there."""
        of_node = min(self.gpus_per_node, self.world_size)
        return Process(self.rank, self.rank % of_node, self.world_size, of_node)

    @property
    def node(self) -> int:
        """The number of the rank's node, from 0."""
        return self.rank // self.gpus_per_node


CLUSTER_OPTIONS = (*Cluster._fields, "json")
#: Options of ``plan.py`` that a dry run does not have, and what to do.
OF_PLANS = {
    "--gpus": "with --dry-run write --world-size; a run has the ranks that its launcher starts"
} | dict.fromkeys(("--mfu", "--mfu-from", "--file-system-gbs", "--picture", "--search"), "only plan.py has it")


def add_cluster_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options of a dry run; None where they are not given."""
    add = group.add_argument
    add("--world-size", type=positive, action="once", metavar="N", help="ranks of the cluster, one per GPU")
    add("--rank", type=int, action="once", metavar="R", help="the rank to be (default: 0)")
    add("--gpus-per-node", type=positive, action="once", metavar="N", help=f"of a node (default: {GPUS_PER_NODE})")
    add("--card", action="once", help=f"of the GPUs, whose memory must suffice, as plan.py --card (default: {CARD})")
    add_shared_arguments(group)
    for option, fix in OF_PLANS.items():
        add(option, action=_OfPlans, nargs="?", const=fix, help=argparse.SUPPRESS)


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """Return the cluster that a command line asks for."""
    given = {name: getattr(arguments, name) for name in Cluster._fields}
    return Cluster(**{name: value for name, value in given.items() if value is not None})


class _OfPlans(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        parser.error(f"{self.option_strings[0]}: {self.const}")


def check(config: RunConfig, cluster: Cluster) -> Layout:
    """Check what a start on such a cluster checks, but for its devices. Raises ValueError: one line."""
    ranks = cluster.world_size
    if not 0 <= cluster.rank < ranks:
        raise ConfigError(f"--rank {cluster.rank}: the ranks of --world-size {ranks} are 0 to {ranks - 1}")
    model = config.architecture()
    if model.num_experts and model.capacity == "dropless":
        raise ConfigError(
            "model.capacity = dropless: how many rows travel to an expert depends on the text, which a dry run does "
            "not read; add model.capacity=factor"
        )
    if config.optimizer.name == "adamw_8bit":
        raise ConfigError(
            "optimizer.name = adamw_8bit: its kernels run on a GPU, which a dry run is without; plan.py counts it, "
            "or add optimizer.name=adamw"
        )
    return checked_layout(config, ranks, cluster.gpus_per_node, option="--world-size")
