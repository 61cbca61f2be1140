"""Adafactor as T5 and ST-MoE train with it, on whole parameters and on ZeRO's flat partitions alike.

Shape suffixes: U = units (experts, or whole parameters) of a partition.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from optim.parameter import ParameterSpec
from optim.partition import Partition, whole
from optim.partition_state import Fragments, PartitionState, index_fragments

STEP = "step"  # name of the update counter in the named state


class UpdateStatistics(NamedTuple):
    """Size of a parameter's last update by unit; float tensors ``[U]``, still on the device."""

    spec: ParameterSpec
    replicas: int  # ranks that report the same figures
    weight_rms: Tensor
    update_rms: Tensor  # before clipping and before the relative scale and the learning rate
    clip: Tensor  # divisor of the update, 1 or more


class Adafactor(Optimizer):
    """Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5 with relative step sizes.

    For update ``t`` = 0, 1, … of a tensor with gradient ``G`` and weights ``X``::

        V = β2 V + (1 - β2) (G² + ε1),  β2 = 1 - (t + 1)^-0.8   V: row and column means, or full
        U = G / sqrt(V)                                         V ≈ row columnᵀ / mean(row)
        U = U / max(1, RMS(U) / update_clipping)
        X = X - lr max(ε2, RMS(X)) U

    A tensor is factored if it is a matrix with both dimensions of at least ``min_dim_size_to_factor``; Hugging Face's
    ``transformers.optimization.Adafactor``, with which this agrees otherwise, factors everything of 2 dimensions or
    more, as ``min_dim_size_to_factor=1`` does. Each expert of a parameter with an expert axis counts as one tensor.

    On ZeRO's partitions the sums over a tensor are sums over ranks. A step makes two all-reduces for every partition
    that is split over several ranks: ZeRO 1 and 2 have one for the dense parameters and one for the experts, ZeRO 3 one
    per sub-group. The first carries rows + columns of each matrix, the second two numbers per unit. Nothing is read by
    the host; no operation is given to tensors that a rank holds nothing of, and few to each shape (``optim.moments``).

    State: rows + columns on every rank; the second moment of other tensors, and the momentum (β1 > 0), on the rank that
    holds their elements. None of it is in ``state``, which DeepSpeed takes to be per element: save ``named_state()``.
    Beside the state and the update of tensors without factors a step allocates at most two blocks of
    ``partition_state.DEVICE_BLOCK`` elements (on a CPU ``CPU_BLOCK``) and a few vectors as long as rows + columns.

    Args:
        params: tensors or groups, as for any optimizer; float32 (or float64).
        specs: of the parameters, see ``parameter_specs``.
        lr: learning rate, relative to the RMS of a tensor's weights.
        update_clipping: largest RMS of a tensor's update, before ``lr`` and the relative scale.
        beta1: decay of the momentum, the running mean of updates; 0: none.
        weight_decay: weights are first multiplied by 1 - lr max(ε2, RMS(X)) weight_decay.
        min_dim_size_to_factor: see above.

    Raises:
        TypeError: weights in a low-precision dtype, or a sparse gradient.
    """

    decay_exponent = 0.8
    gradient_epsilon = 1e-30  # ε1
    min_parameter_scale = 1e-3  # ε2

    def __init__(
        self,
        params: Iterable[Any],
        specs: Mapping[Tensor, ParameterSpec],
        *,
        lr: float = 1e-2,
        update_clipping: float = 1.0,
        beta1: float = 0.0,
        weight_decay: float = 0.0,
        min_dim_size_to_factor: int = 128,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.update_clipping, self.beta1, self.min_dim_size_to_factor = update_clipping, beta1, min_dim_size_to_factor
        self.specs = dict(specs)
        self.partition_states: dict[Tensor, PartitionState] = {}
        self.bytes_reduced = 0  # by this rank's all-reduces since construction

    def bind(self, partitions: Iterable[Partition]) -> None:
        """Step these partitions from now on instead of the parameters: DeepSpeed has put them into the groups."""
        self.partition_states = {}
        for partition in partitions:
            self._add(partition)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; collective over each partition's group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                if tensor.grad.is_sparse:
                    raise TypeError("Adafactor needs dense gradients: use nn.Embedding(sparse=False)")
                state = self._state_of(tensor)
                if state is not None:
                    self._update(state, tensor.grad, group["lr"], group["weight_decay"])
        return loss

    def _state_of(self, tensor: Tensor) -> PartitionState | None:
        if tensor in self.partition_states:
            return self.partition_states[tensor]
        if tensor in self.specs:
            return self._add(whole(tensor, self.specs[tensor]))
        # While it is constructed, DeepSpeed may rehearse a step, with zero gradients, on tensors not yet bound.
        if tensor.grad is not None and tensor.grad.any():
            raise RuntimeError("Adafactor does not know this tensor: call bind() with the partitions first")
        return None

    def _add(self, partition: Partition) -> PartitionState:
        if partition.tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Adafactor updates float32 weights, not {partition.tensor.dtype}: give it a master copy")
        epsilon, momentum = self.gradient_epsilon, self.beta1 > 0
        state = PartitionState(partition, self.min_dim_size_to_factor, epsilon=epsilon, momentum=momentum)
        self.partition_states[partition.tensor] = state
        return state

    def _update(self, state: PartitionState, grad: Tensor, lr: float, weight_decay: float) -> None:
        weights, grad = state.partition.tensor.detach().view(-1), grad.reshape(-1)
        self._update_moments(state, weights, grad)
        rate_U = lr * state.weight_rms_U.clamp_min(self.min_parameter_scale)
        target, step_size_U = weights, rate_U / state.clip_U
        if state.momentum is not None:
            target, step_size_U = state.momentum.mul_(self.beta1), (self.beta1 - 1) * step_size_U
        for moments in (state.factored, state.full) if weight_decay else ():
            moments.shrink(weights, rate_U, weight_decay)
        state.factored.apply(target, grad, step_size_U)
        state.full.apply(target, step_size_U)
        if state.momentum is not None:
            weights.sub_(state.momentum)

    def _update_moments(self, state: PartitionState, weights: Tensor, grad: Tensor) -> None:
        """Update the second moments; measure the RMS of weights and update, and clipping's divisor. Two all-reduces."""
        decay = 1 - (state.step + 1) ** -self.decay_exponent
        state.step += 1
        squares_2U = weights.new_zeros(2, len(state.unit_numel_U))
        state.full.update(weights, grad, squares_2U, decay)
        if state.factored.matrices:
            sums = state.factored.sum_squares(grad)
            self._all_reduce(sums, state.partition)
            state.factored.update(sums, decay)
            state.factored.measure(weights, grad, squares_2U)
        self._all_reduce(squares_2U, state.partition)
        state.weight_rms_U, state.update_rms_U = squares_2U.div_(state.unit_numel_U).sqrt_()
        state.clip_U = (state.update_rms_U / self.update_clipping).clamp_min(1.0)

    def _all_reduce(self, sums: Tensor, partition: Partition) -> None:
        if not partition.is_split or partition.group_size == 1:
            return
        moved = sums.to(partition.device or sums.device)  # with weights in host memory: to where the group communicates
        dist.all_reduce(moved, group=partition.group)
        if moved is not sums:
            sums.copy_(moved)
        self.bytes_reduced += sums.nbytes

    def statistics(self) -> Iterator[UpdateStatistics]:
        """Yield the size of the last update of every parameter; nothing before the first update."""
        for state in self.partition_states.values():
            if state.step:
                replicas = state.partition.group_size
                for segment, units in state.units.items():
                    figures = state.weight_rms_U[units], state.update_rms_U[units], state.clip_U[units]
                    yield UpdateStatistics(segment.spec, replicas, *figures)

    @property
    def state_nbytes(self) -> int:
        """Bytes of this rank's state."""
        return sum(state.nbytes for state in self.partition_states.values())

    def named_state(self) -> dict[str, Tensor]:
        """Return this rank's share of the state, under names that do not depend on the layout; see ``partition_state``.

        The shares of all ranks make up the whole state, without repetition except for the update counter.

        Raises:
            ValueError: parameters have seen different numbers of updates.
        """
        steps = {state.step for state in self.partition_states.values()}
        if len(steps) > 1:
            raise ValueError(f"parameters have seen different numbers of updates: {sorted(steps)}")
        named = {name: tensor for state in self.partition_states.values() for name, tensor in state.named_state()}
        return named | {STEP: torch.tensor(max(steps, default=0))}

    @torch.no_grad()
    def load_named_state(self, state: Mapping[str, Tensor], fragments: Fragments | None = None) -> None:
        """Load what this rank needs from a whole state, saved at any layout.

        Args:
            state: ``named_state()`` of all ranks together; only what is needed is read.
            fragments: finds those that hold elements of a tensor; None: by the names of ``state``.

        Raises:
            ValueError: it lacks a tensor that this rank needs.
        """
        for tensor in (p for group in self.param_groups for p in group["params"] if p in self.specs):
            self._state_of(tensor)
        fragments, step = fragments or index_fragments(state), int(state[STEP])
        for partition_state in self.partition_states.values():
            partition_state.load(state, fragments)
            partition_state.step = step
