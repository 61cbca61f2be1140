"""Sizes of gradients, weights and updates by family of parameters, measured where the optimizer steps its partitions.

Shape suffixes: F = families, C = ``SUMS``, U = units of all parameters (see ``optim.adafactor``), R = runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from optim.adafactor import Adafactor
from optim.partition import Partition
from training.engine.loss_terms import LossTerms
from training.engine.parameters import engine_partitions, parameter_families
from training.engine.shares import Reduced, Share, reduce_shares, share
from training.monitoring.monitors.base import PassiveMonitor

SUMS = ("numel", "gradients", "weights", "updates", "clipped_updates", "units", "clipped")  # squares, but for counts
BLOCK = 1 << 22  # elements: bounds the scratch memory of AdamW's update

Run = tuple[int, slice]  # contiguous elements of a partition that are of one family, by its index


class FamilySizes(PassiveMonitor):
    """``<figure>/<family>`` of the update of a logged step; each expert and each dense parameter counts once.

    ``gradient_norm``: before clipping; ``parameter_rms``: of the weights before the update; ``update_rms``: of what the
    optimizer makes of the gradient, before (Adafactor) clipping and relative scale, before learning rate and weight
    decay: AdamW's m / (sqrt(v) + epsilon) with both bias corrections, Adafactor's G / sqrt(V). With Adafactor,
    ``clipped_update_rms``: of the same after clipping; ``clipped_fraction``: share of the tensors (each expert counts
    as one) that were clipped.

    Args:
        engine: the DeepSpeed engine; collective over all ranks.
        clipping: ``optimizer.gradient_clipping``.
    """

    def __init__(self, engine: Any, clipping: float):
        self.engine, self.clipping, self.optimizer = engine, clipping, engine.basic_optimizer
        self.family_of = parameter_families(engine.module)
        self.partitions = {partition.tensor: partition for partition in engine_partitions(engine)}
        segments = (segment for partition in self.partitions.values() for segment in partition.segments)
        self.families = sorted({self.family_of[segment.spec.name] for segment in segments})  # those that are trained
        self.runs = {tensor: list(self._runs(partition)) for tensor, partition in self.partitions.items()}
        self.numel_F = [0.0] * len(self.families)  # this rank's share
        for tensor, runs in self.runs.items():
            for family, where in runs:
                self.numel_F[family] += (where.stop - where.start) / self._replicas(tensor)
        self.measuring = False
        self._members: dict[tuple[int, ...], Tensor] = {}
        self.hooks = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    def begin_step(self, *, logged: bool) -> None:
        """Measure this step if it is logged."""
        self.measuring = logged
        self.table_FC = torch.zeros(len(self.families), len(SUMS), dtype=torch.float64, device=self.engine.device)

    def share(self, terms: LossTerms | None = None) -> Share:
        """Return this rank's sums; zeros of a step that was not measured or not made."""
        table_FC = self.table_FC.clone()
        if self.measuring and self.engine.was_step_applied():
            if isinstance(self.optimizer, Adafactor):
                table_FC += _sums_of_adafactor(self.optimizer, self.family_of, self.families).to(table_FC.device)
            else:
                table_FC[:, 0] = torch.tensor(self.numel_F)
        return share(table_FC.flatten())

    def columns(self, reduced: Reduced) -> dict[str, float]:
        """Return the figures; none if the update was skipped or not measured."""
        if not self.measuring or not self.engine.was_step_applied():
            return {}
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        shrunk_by = max(1.0, (norm + 1e-6) / self.clipping) if self.clipping else 1.0
        figures = {}
        rows = torch.tensor(reduced.sums, dtype=torch.float64).view(len(self.families), -1).tolist()
        for family, row in zip(self.families, rows, strict=True):
            of = dict(zip(SUMS, row, strict=True))
            figures[f"gradient_norm/{family}"] = of["gradients"] ** 0.5 * shrunk_by
            figures[f"parameter_rms/{family}"] = (of["weights"] / of["numel"]) ** 0.5
            if of["units"]:
                figures[f"clipped_update_rms/{family}"] = (of["clipped_updates"] / of["numel"]) ** 0.5
                figures[f"clipped_fraction/{family}"] = of["clipped"] / of["units"]
            if of["units"] or isinstance(self.optimizer, torch.optim.AdamW):
                figures[f"update_rms/{family}"] = (of["updates"] / of["numel"]) ** 0.5
        return figures

    def figures(self) -> dict[str, float]:
        """Return ``columns`` of the last update; collective."""
        (reduced,) = reduce_shares([self.share()], self.engine.device)
        return self.columns(reduced)

    def close(self) -> None:
        """Leave the optimizer alone."""
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def _before(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        """Measure what is about to be stepped; DeepSpeed steps one partition after another."""
        if not self.measuring:
            return
        stepped = self._stepped(optimizer)
        self._add("gradients", stepped, [cast(Tensor, tensor.grad) for tensor in stepped])
        if not isinstance(optimizer, Adafactor):  # it measures its weights itself
            self._add("weights", stepped, [tensor.detach() for tensor in stepped])

    @torch.no_grad()
    def _after(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if self.measuring and isinstance(optimizer, torch.optim.AdamW):
            groups = {tensor: group for group in optimizer.param_groups for tensor in group["params"]}
            for tensor in self._stepped(optimizer):
                for family, where in self.runs[tensor]:
                    square = _square_of_adamw(optimizer.state[tensor], groups[tensor], where) / self._replicas(tensor)
                    self.table_FC[family, SUMS.index("updates")] += square.to(self.table_FC.device)

    def _stepped(self, optimizer: Any) -> list[Tensor]:
        """The partitions that have elements on this rank and that a call of ``step`` updates."""
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        return [tensor for tensor in tensors if tensor.grad is not None and self.runs.get(tensor)]

    def _add(self, name: str, stepped: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Add the squares of values of these partitions to their elements' families, in a fixed order."""
        views = [value.view(-1)[at] for key, value in zip(stepped, values, strict=True) for _, at in self.runs[key]]
        if not views:
            return
        key = tuple(map(id, stepped))
        if key not in self._members:
            pairs = [(family, 1 / self._replicas(tensor)) for tensor in stepped for family, _ in self.runs[tensor]]
            index_R, part_R = (torch.tensor(column) for column in zip(*pairs, strict=True))
            member_RF = torch.eye(len(self.families), dtype=torch.float64)[index_R] * part_R.double().unsqueeze(-1)
            self._members[key] = member_RF.t().to(views[0].device)
        norm_R = torch.stack(torch._foreach_norm(views, 2, dtype=torch.float32)).double()
        sums_F = self._members[key] @ norm_R.square()
        self.table_FC[:, SUMS.index(name)] += sums_F.to(self.table_FC.device)

    def _replicas(self, tensor: Tensor) -> int:
        """Ranks that measure the same elements."""
        partition = self.partitions[tensor]
        return 1 if partition.is_split else partition.group_size

    def _runs(self, partition: Partition) -> Iterator[Run]:
        held = sorted(partition.held(), key=lambda segment: segment.offset)
        family, begin, end = -1, 0, 0
        for segment in held:
            own = self.families.index(self.family_of[segment.spec.name])
            if own != family or segment.offset != end:
                if end > begin:
                    yield family, slice(begin, end)
                family, begin = own, segment.offset
            end = segment.offset + segment.numel
        if end > begin:
            yield family, slice(begin, end)


def _square_of_adamw(state: dict[str, Any], group: dict[str, Any], where: slice) -> Tensor:
    """The sum of squares of AdamW's last update over some elements, before the learning rate; float64 scalar."""
    beta1, beta2 = group["betas"]
    moment, square = (state[name].view(-1)[where] for name in ("exp_avg", "exp_avg_sq"))
    first, second = (1 - beta ** state["step"] for beta in (beta1, beta2))
    total = moment.new_zeros((), dtype=torch.float64)
    for m, v in zip(moment.split(BLOCK), square.split(BLOCK), strict=True):
        total += m.div(v.div(second).sqrt_().add_(group["eps"])).norm().double().square()
    return total / first**2


def _sums_of_adafactor(optimizer: Adafactor, family_of: dict[str, str], families: list[str]) -> Tensor:
    """All sums but those of gradients, ``[F, C]``, from what Adafactor measures for its update."""
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
    none_U, one_U = torch.zeros_like(clip_U), torch.ones_like(clip_U)
    columns_UC = torch.stack([numel_U.double(), none_U, *squares, one_U, (clip_U > 1).double()], dim=1)
    # This rank's share of what several ranks report alike. A product: sums by index have no fixed order on a GPU.
    return one_hot(family_U, len(families)).double().t() @ (columns_UC / replicas_U[:, None])
