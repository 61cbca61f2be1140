"""All monitors of a run, and the row that they make together."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from data.streaming.loader import PretrainingLoader
from model.config import StMoeConfig
from training.config.run import RunConfig
from training.engine.loss_terms import LossTerms
from training.engine.shares import reduce_shares
from training.monitoring.monitors.base import DataCounts, Monitor
from training.monitoring.monitors.efficiency import Efficiency
from training.monitoring.monitors.families import FamilySizes
from training.monitoring.monitors.optimizer import OptimizerFigures
from training.monitoring.monitors.peaks import find_peak
from training.monitoring.monitors.routing import RouterHealth
from training.monitoring.monitors.throughput import Throughput


class Monitors:
    """The monitors; their methods are collective over all ranks.

    Args:
        config: the run's.
        model_config: its model section.
        engine: the DeepSpeed engine.
        loader: of training.
        device: of this rank.
    """

    def __init__(
        self, config: RunConfig, model_config: StMoeConfig, engine: Any, loader: PretrainingLoader, device: str
    ):
        self.model_config, self.device = model_config, device
        self.observes_routers = config.training.monitor.routing
        self.throughput = Throughput(engine.module, device)
        self.routers = RouterHealth(model_config)
        peak = find_peak(device, config.training.precision)
        self.efficiency = Efficiency(model_config, device, peak, self.throughput)
        self.members: tuple[Monitor, ...] = (
            self.throughput,
            self.efficiency,
            self.routers,
            OptimizerFigures(engine, config.optimizer.learning_rate),
            *([FamilySizes(engine, config.optimizer.gradient_clipping)] if self.observes_routers else []),
            DataCounts(loader),
        )

    def begin_step(self, *, logged: bool) -> None:
        """Note the start of a step, and whether a row is written after it."""
        for member in self.members:
            member.begin_step(logged=logged)

    def count(self, tokens: int, batches: Sequence[dict[str, Tensor]]) -> None:
        """Count a step on ``tokens`` real tokens of all ranks, ``batches`` on this one."""
        self.throughput.count(tokens)
        self.efficiency.count(batches)

    def row(self, terms: LossTerms) -> dict[str, float]:
        """Return the columns of a row of training; one collective and one wait for the device."""
        shares = [terms.share(), *(member.share(terms) for member in self.members)]
        of_terms, *others = reduce_shares(shares, self.device)
        row = terms.read(of_terms, self.model_config)
        for member, reduced in zip(self.members, others, strict=True):
            row |= member.columns(reduced)
        return row

    def routing_row(self) -> dict[str, Any]:
        """Return the columns of a row of ``routing``, see ``RouterHealth.picture``."""
        return self.routers.picture()

    def state_dict(self) -> dict[str, list[float]]:
        """Return what the next row of ``routing`` has so far, as plain JSON."""
        return self.routers.state_dict()

    def restart(self, state: Mapping[str, list[float]]) -> None:
        """Discard what was measured since the last rows, except ``state_dict``: the run resumes from a checkpoint."""
        self.throughput.restart()
        self.routers.load_state_dict(state)

    def close(self) -> None:
        """Release what the monitors hold."""
        for member in self.members:
            member.close()
