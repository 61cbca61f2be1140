"""Carries out the guard's decisions: notes them, diagnoses, and finds the checkpoint to go back to."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from common.exit_codes import UNHEALTHY, RunError
from model.losses import LossDivisors
from training.checkpoint.agreement import agree_on_checkpoint
from training.checkpoint.store.state import Checkpoint
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.health.diagnosis import diagnose
from training.health.guard import Decision, Guard
from training.monitoring.metrics import PartsMean


class UnhealthyError(RunError):
    """The guard ended the run. A restart would come to the same."""

    code = UNHEALTHY


class Health:
    """Asks the guard after each step. Collective over all ranks.

    Args:
        config: of the run.
        engine: the DeepSpeed engine.
        write: takes a row of metrics.
        say: takes a line for people.
        settle: waits for a checkpoint that is on its way.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: Any,
        write: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        settle: Callable[[], None],
    ):
        self.config, self.engine, self.write, self.say, self.settle = config, engine, write, say, settle
        self.guard = Guard(config.guard)

    def check(
        self, step: int, parts: PartsMean, batch: dict[str, Tensor], counts: LossDivisors, rank: int
    ) -> Checkpoint | None:
        """After a step; gives the checkpoint to go back to, if the run must.

        Args:
            step: its number, from 1.
            parts: of its losses.
            batch: its first micro-batch.
            counts: divisors of its losses.
            rank: this one.

        Raises:
            UnhealthyError: the run must end.
        """
        applied = bool(self.engine.was_step_applied())
        loss = parts.reduce(self.config.st_moe_config())["loss"] if self.config.guard.spike_threshold else None
        decision = self.guard.observe(step, applied=applied, loss=loss)
        if not applied and self.config.optimizer.non_finite == "stop":
            decision = Decision("stop", f"the gradient of step {step} is not finite, and optimizer.non_finite = stop")
        if decision is None:
            return None
        if decision.kind == "stop":
            reason = decision.reason
            if not applied:
                key = (self.config.training.seed, step - 1, rank)
                reason += f"; {diagnose(self.engine, batch, counts, *key)}"
            self._note(step, "stop", reason)
            raise UnhealthyError(f"{reason}; the weights are those of the last good step, in the checkpoints")
        if decision.kind == "roll_back":
            return self._good_checkpoint(step, decision)
        self._note(step, decision.kind, decision.reason)
        return None

    def _good_checkpoint(self, step: int, decision: Decision) -> Checkpoint | None:
        self.settle()
        try:
            checkpoint = agree_on_checkpoint(self.config.run_dir, self.say, before=decision.before)
        except ConfigError as error:
            self.guard.spikes = 0
            self._note(step, "go_on", f"{decision.reason}; cannot go back: {error}")
            return None
        self.guard.rolled_back()
        back = checkpoint.state.step
        self._note(
            step,
            "roll_back",
            f"{decision.reason}: going back to {checkpoint.folder.name}; the data of steps {back + 1} to {step} are "
            f"left out; return {self.guard.rollbacks} of guard.max_rollbacks = {self.config.guard.max_rollbacks}",
        )
        return checkpoint

    def _note(self, step: int, decision: str, reason: str) -> None:
        self.say(f"guard: {decision}: {reason}")
        counts = {"non_finite_in_a_row": self.guard.non_finite, "rollbacks": self.guard.rollbacks}
        self.write({"split": "guard", "step": step, "decision": decision, "reason": reason, **counts})
