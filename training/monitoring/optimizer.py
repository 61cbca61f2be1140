"""Sizes of parameters and updates by family of parameters, from what Adafactor measures for its update."""

from typing import Any

import deepspeed.comm as dist
import torch
from torch.nn.functional import one_hot

from optim.adafactor import Adafactor
from training.engine.parameters import parameter_families
from training.monitoring.monitor import PassiveMonitor


class OptimizerFigures(PassiveMonitor):
    """Learning rate, gradient norm, skipped steps and, with Adafactor, ``<figure>/<family>`` of the last update.

    Args:
        engine: the DeepSpeed engine.
        peak: ``optimizer.learning_rate``.
    """

    def __init__(self, engine: Any, peak: float):
        self.engine, self.peak = engine, peak

    def metrics(self) -> dict[str, float]:
        """Return the figures of the last update."""
        norm = self.engine.get_global_grad_norm()
        return {
            "learning_rate": self._learning_rate(),
            "grad_norm": float("nan") if norm is None else float(norm),
            "skipped_steps": self.engine.skipped_steps,
            **family_figures(self.engine),
        }

    def _learning_rate(self) -> float:
        schedule = self.engine.lr_scheduler  # it does not count skipped steps
        return float(schedule.lr_lambdas[0](max(0, schedule.last_epoch - 1)) * self.peak)


def family_figures(engine: Any) -> dict[str, float]:
    """Return figures of the last update, named ``<figure>/<family>``; collective, one all-reduce of a few numbers.

    ``parameter_rms``: root mean square of the weights before the update; ``update_rms``: of the update before clipping,
    relative scale and learning rate; ``clipped_update_rms``: of the same after clipping; ``clipped_fraction``: share of
    the tensors (each expert counts as one) that were clipped.

    Returns:
        Nothing with another optimizer, or when the update was skipped.
    """
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, Adafactor) or not engine.was_step_applied():
        return {}
    family_of = parameter_families(engine.module)
    families = sorted(set(family_of.values()))
    # One vector over all units for each figure: a few operations, not some for every parameter.
    sizes = list(optimizer.statistics())
    weight_rms_U, update_rms_U, clip_U = (
        torch.cat(vectors).double()
        for vectors in zip(*((s.weight_rms, s.update_rms, s.clip) for s in sizes), strict=True)
    )
    rows = [
        (families.index(family_of[s.spec.name]), s.spec.unit_numel, s.replicas)
        for s in sizes
        for _ in range(s.spec.units)
    ]
    family_U, numel_U, replicas_U = torch.tensor(rows, device=clip_U.device).unbind(1)
    squares = [numel_U * rms_U.square() for rms_U in (weight_rms_U, update_rms_U, update_rms_U / clip_U)]
    columns_U6 = torch.stack([numel_U.double(), torch.ones_like(clip_U), *squares, (clip_U > 1).double()], dim=1)
    # This rank's share of what several ranks report alike. A product: sums by index have no fixed order on a GPU.
    table = one_hot(family_U, len(families)).double().t() @ (columns_U6 / replicas_U[:, None])
    table = table.to(engine.device)
    dist.all_reduce(table)
    figures = {}
    for family, (numel, units, weights, update, clipped_update, clipped) in zip(families, table.tolist(), strict=True):
        figures[f"parameter_rms/{family}"] = (weights / numel) ** 0.5
        figures[f"update_rms/{family}"] = (update / numel) ** 0.5
        figures[f"clipped_update_rms/{family}"] = (clipped_update / numel) ** 0.5
        figures[f"clipped_fraction/{family}"] = clipped / units
    return figures
