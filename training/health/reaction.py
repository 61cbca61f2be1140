"""Carries out the guard's decisions: records them, diagnoses, and finds the checkpoint to roll back to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from torch import Tensor

from common.exit_codes import UNHEALTHY, RunError
from common.logs import get_logger
from model.losses import LossDivisors
from training.checkpoint.agreement import agree_on_checkpoint
from training.checkpoint.checkpointer import Checkpointer, SaveError
from training.checkpoint.finite import some, weights_not_finite
from training.checkpoint.store.state import Checkpoint
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.engine.loss_terms import LossTerms
from training.health.diagnosis import diagnose
from training.health.guard import Decision, Guard
from training.monitoring.columns import ROLLED_BACK_TO
from training.monitoring.writer import MetricsWriter

logger = get_logger(__name__)


class UnhealthyError(RunError):
    """The guard ended the run. A restart would end the same way."""

    code = UNHEALTHY


@dataclass(frozen=True)
class RollBack:
    """A return to an earlier checkpoint that is due."""

    checkpoint: Checkpoint
    step: int  # after which the guard decided it
    reason: str  # one line


class Health:
    """Consults the guard after each step. Collective over all ranks.

    Args:
        config: of the run.
        engine: the DeepSpeed engine.
        metrics: takes the guard's rows.
        checkpointer: waited for before a rollback and before the end.
        rank: of this process.
    """

    def __init__(
        self, config: RunConfig, engine: Any, metrics: MetricsWriter, checkpointer: Checkpointer, rank: int
    ) -> None:
        self.config, self.engine, self.metrics, self.checkpointer = config, engine, metrics, checkpointer
        self.rank = rank
        self.guard = Guard(config.guard)

    def check(self, step: int, terms: LossTerms, batch: dict[str, Tensor], divisors: LossDivisors) -> RollBack | None:
        """Check a step; return the roll-back that the run must make, if any.

        Args:
            step: its number, from 1.
            terms: of its losses.
            batch: its first micro-batch.
            divisors: of its losses.

        Raises:
            UnhealthyError: the run must end.
        """
        applied = bool(self.engine.was_step_applied())
        loss = terms.reduce(self.config.st_moe_config())["loss"] if self.config.guard.spike_threshold else None
        decision = self.guard.observe(step, applied=applied, loss=loss)
        if not applied and self.config.optimizer.non_finite == "stop":
            decision = Decision("stop", f"the gradient of step {step} is not finite, and optimizer.non_finite = stop")
        if decision is None:
            return None
        if decision.kind == "skipped" and weights_not_finite(self.engine):
            decision = Decision("stop", f"{decision.reason}, and no step can be: the weights are not finite")
        if decision.kind == "stop":
            reason = decision.reason
            if not applied:
                key = (self.config.training.seed, step - 1, self.rank)
                reason += f"; {diagnose(self.engine, batch, divisors, *key)}"
            self.stop(step, reason)
        if decision.kind == "roll_back":
            return self._roll_back(step, decision)
        self._record(step, decision.kind, decision.reason)
        return None

    def check_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Check the terms of an evaluation. Raises UnhealthyError: they are not finite."""
        if not all(map(math.isfinite, (values["loss"], values["cross_entropy"]))):
            bad = some(weights_not_finite(self.engine))
            self.stop(step, f"the validation loss of step {step} is not finite; not finite among weights: {bad}")

    def stop(self, step: int, reason: str) -> NoReturn:
        """Record why the run cannot continue, once the checkpoint being written is complete. Raises UnhealthyError."""
        try:
            self.checkpointer.settle(step)  # it holds an earlier, good step, which this process must not lose
        except SaveError as error:  # recorded, and not why the run ends
            logger.warning(str(error))
        self._record(step, "stop", reason)
        raise UnhealthyError(f"{reason}; the checkpoints stay as they are")

    def record_roll_back(self, due: RollBack) -> None:
        """Write the row of a roll-back, after all rows of the steps that it undoes."""
        self._record(due.step, "roll_back", due.reason, {ROLLED_BACK_TO: due.checkpoint.state.step})

    def _roll_back(self, step: int, decision: Decision) -> RollBack | None:
        self.checkpointer.settle(step)
        try:
            checkpoint = agree_on_checkpoint(self.config.run_dir, before=decision.before)
        except ConfigError as error:
            self.guard.spikes = 0
            self._record(step, "continue", f"{decision.reason}; cannot roll back: {error}")
            return None
        self.guard.rolled_back()
        back = checkpoint.state.step
        reason = (
            f"{decision.reason}: rolling back to {checkpoint.folder.name}; the data of steps {back + 1} to {step} are "
            f"skipped; rollback {self.guard.rollbacks} of guard.max_rollbacks = {self.config.guard.max_rollbacks}"
        )
        return RollBack(checkpoint, step, reason)

    def _record(self, step: int, decision: str, reason: str, more: Mapping[str, int] = MappingProxyType({})) -> None:
        logger.info("guard: %s: %s", decision, reason)
        counts = {"non_finite_in_a_row": self.guard.non_finite, "rollbacks": self.guard.rollbacks}
        self.metrics.write({"split": "guard", "step": step, "decision": decision, "reason": reason, **counts, **more})
