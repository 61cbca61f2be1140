"""A dry run: checks, the plan, the rehearsal of one rank, and whether they agree."""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.exit_codes import RunError
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.dry_run.checks import Cluster, check
from training.dry_run.shapes import shapes_of
from training.dry_run.text import Text, text_of
from training.planning.cards import find_card
from training.planning.display.options import reserved_bytes
from training.planning.display.table import verdict
from training.planning.plan import Assumptions, Plan, make_plan

if TYPE_CHECKING:
    from training.dry_run.table import Found


class DisagreementError(RunError):
    """The plan's numbers are not those of the real modules: a fault of this program."""

    code = 1


@dataclass(frozen=True)
class Prepared:
    """A dry run that is worth its time."""

    config: RunConfig
    cluster: Cluster
    plan: Plan
    text: Text


def prepare(config: RunConfig, cluster: Cluster) -> Prepared:
    """Check everything that needs no model, without torch.

    Args:
        config: of the run.
        cluster: that is asked for.

    Raises:
        ValueError: one line; what cannot be started, or does not fit the cards, by how much.
    """
    card = find_card(cluster.card)
    layout = check(config, cluster)
    assumptions = Assumptions(reserved=reserved_bytes(cluster.reserve, card))
    text = text_of(config, cluster.process)
    plan = make_plan(config, layout, card, assumptions)
    if not plan.fits:
        raise ConfigError(verdict(plan))
    return Prepared(config, cluster, plan, text)


def run(prepared: Prepared, tell: Callable[[str], None]) -> "Found":
    """Be one rank of the cluster for a step of training, and return what it found.

    Args:
        prepared: from ``prepare``.
        tell: is called with what begins now.

    Raises:
        DisagreementError: the plan is wrong; names both numbers.
    """
    began = time.monotonic()
    tell("importing torch and DeepSpeed")
    # The fake tensors say that they are on a CPU, and no CUDA device is asked.
    os.environ["DS_ACCELERATOR"] = "cpu"
    from training.run.known_warnings import silence_known_warnings

    silence_known_warnings()
    from training.dry_run.agreement import checked, differences
    from training.dry_run.cluster import pretend
    from training.dry_run.files import files_of
    from training.dry_run.measured import measure
    from training.dry_run.rehearsal import rehearse
    from training.dry_run.table import Found

    config, process = prepared.config, prepared.cluster.process
    with pretend(process) as rank:
        engine, step = rehearse(config, process, rank, tell)
        tell("comparing with the plan")
        measured, files = measure(engine, step.gradients), files_of(engine, config)
    wrong = list(differences(config, prepared.plan, process.rank, measured, step))
    if wrong:
        raise DisagreementError(f"the plan is wrong, which is a fault of this program: {'; '.join(wrong)}")
    return Found(
        config=config,
        cluster=prepared.cluster,
        plan=prepared.plan,
        text=prepared.text,
        shapes=shapes_of(config),
        measured=measured,
        step=step,
        files=files,
        checked=checked(config, prepared.plan, step),
        seconds=time.monotonic() - began,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
