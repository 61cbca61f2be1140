"""Terms of the objective: L = L_CE + c_B L_B + c_Z L_Z + c_O * mean log^2 Z of the output head. All in float32.

Shape suffixes: G = groups, S = tokens of a group, E = experts, B = sequences, L = target tokens, V = vocabulary,
T = B * L, b = tokens of a block.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100
CPU_BLOCK, DEVICE_BLOCK = 1 << 18, 1 << 24  # logits that are in float32 at a time


class LossDivisors(NamedTuple):
    """Divisors of the sums over tokens: float32 scalars on the model's device.

    For a loss that is exact over a global batch, pass the real tokens of the global batch divided by the number of its
    micro-batches on all ranks: the mean of the micro-batches' losses is then the loss of the global batch.
    """

    encoder: Tensor  # for the router z-losses of the encoder
    decoder: Tensor  # for the router z-losses of the decoder, cross-entropy and output z-loss


class RouterLosses(NamedTuple):
    """Router losses and statistics of one sparse layer; scalars but for the last."""

    load_balance: Tensor  # float32, L_B
    z: Tensor  # float32, L_Z
    max_logit: Tensor  # float32, without gradient
    dropped_tokens: Tensor  # int64, real tokens that no expert processes
    real_tokens: Tensor  # int64
    statistics: Tensor | None = None  # float64 [K] where asked for, see ``moe.statistics``


def load_balance_loss(probs_GSE: Tensor, first_choice_GS: Tensor, mask_GS: Tensor) -> Tensor:
    """Compute the load-balance loss E * sum_i f_i * P_i, averaged over groups (Fedus et al. 2021, equations 4-6).

    f_i is the fraction of a group's real tokens whose first choice is expert i, P_i their mean probability of expert i.

    Args:
        probs_GSE: router probabilities, float32; they sum to 1 over the experts.
        first_choice_GS: most probable expert of each token, int64, before capacity is applied.
        mask_GS: 1 for real tokens, 0 for padding.

    Returns:
        Scalar float32; 1.0 when both assignment and probability are uniform over the real tokens.
    """
    return _load_balance_by_group(probs_GSE, first_choice_GS, mask_GS).mean()


def _load_balance_by_group(probs_GSE: Tensor, first_choice_GS: Tensor, mask_GS: Tensor) -> Tensor:
    """Return the load-balance loss of each group, float32 ``[G]``; see ``load_balance_loss``."""
    num_experts = probs_GSE.shape[-1]
    mask_GS = mask_GS.float()
    tokens_G1 = mask_GS.sum(-1, keepdim=True).clamp(min=1)
    count_GE = mask_GS.new_zeros(len(mask_GS), num_experts).scatter_add_(-1, first_choice_GS, mask_GS)
    mean_prob_GE = (probs_GSE.float() * mask_GS.unsqueeze(-1)).sum(1) / tokens_G1
    return num_experts * (count_GE / tokens_G1 * mean_prob_GE).sum(-1)


def router_z_loss(logits_GSE: Tensor, mask_GS: Tensor, divisor: Tensor | None = None) -> Tensor:
    """Compute the router z-loss: mean over real tokens of (logsumexp of the logits)^2 (Zoph et al. 2022, equation 5).

    Args:
        logits_GSE: router logits.
        mask_GS: 1 for real tokens, 0 for padding.
        divisor: what the sum over real tokens is divided by; None: their number in this call.

    Returns:
        Scalar float32.
    """
    mask_GS = mask_GS.float()
    square_GS = logits_GSE.float().logsumexp(-1).square()
    return (square_GS * mask_GS).sum() / (mask_GS.sum().clamp(min=1) if divisor is None else divisor)


def router_losses_by_sequence(
    logits_BLE: Tensor, first_choice_BL: Tensor | None, mask_BL: Tensor, weight_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute both router losses with each sequence as a group, weighted: sums over any division into micro-batches.

    Args:
        logits_BLE: router logits.
        first_choice_BL: most probable expert of each token, int64; None: no load-balance loss (expert choice).
        mask_BL: 1 for real tokens, 0 for padding.
        weight_B: weight of each sequence, float32.

    Returns:
        ``sum_b weight_b L_B(b)`` and ``sum_b weight_b L_Z(b)``, float32 scalars.
    """
    logits_BLE, mask_BL = logits_BLE.float(), mask_BL.float()
    square_BL = logits_BLE.logsumexp(-1).square()
    z_B = (square_BL * mask_BL).sum(-1) / mask_BL.sum(-1).clamp(min=1)
    if first_choice_BL is None:
        return weight_B.new_zeros(()), (weight_B * z_B).sum()
    balance_B = _load_balance_by_group(logits_BLE.softmax(-1), first_choice_BL, mask_BL)
    return (weight_B * balance_B).sum(), (weight_B * z_B).sum()


def max_router_logit(logits_GSE: Tensor, mask_GS: Tensor) -> Tensor:
    """Return the largest logit of the real tokens, a float32 scalar without gradient; -inf if there are none."""
    return logits_GSE.detach().float().amax(-1).masked_fill(~mask_GS.bool(), float("-inf")).amax()


class _CrossEntropyAndZ(torch.autograd.Function):
    """Works on a block of rows at a time: float32 logits of all tokens would be the largest tensors of a step."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, labels_T: Tensor, real_T: Tensor, divisor: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_z_T, target_T = (torch.empty(len(labels_T), device=labels_T.device) for _ in range(2))
        for block in _rows(logits_TV):
            logits_bV = logits_TV[block].float()
            log_z_T[block] = logits_bV.logsumexp(-1)
            target_T[block] = logits_bV.gather(-1, labels_T[block].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits_TV, labels_T, real_T, divisor, log_z_T)
        cross_entropy = ((log_z_T - target_T) * real_T).sum() / divisor
        return cross_entropy, (log_z_T.square() * real_T).sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_z: Tensor) -> tuple[Tensor, None, None, None]:
        logits_TV, labels_T, real_T, divisor, log_z_T = ctx.saved_tensors
        share_T = real_T / divisor
        of_target_T1 = (-grad_cross_entropy * share_T).unsqueeze(-1)
        of_log_z_T1 = ((grad_cross_entropy + 2 * grad_z * log_z_T) * share_T).unsqueeze(-1)
        grad_TV = torch.empty_like(logits_TV)
        for block in _rows(logits_TV):
            out = grad_TV[block] if logits_TV.dtype == log_z_T.dtype else None  # float32: without a copy
            grad_bV = torch.sub(logits_TV[block], log_z_T[block].unsqueeze(-1), out=out).exp_().mul_(of_log_z_T1[block])
            grad_bV.scatter_add_(-1, labels_T[block].unsqueeze(-1), of_target_T1[block])
            if out is None:
                grad_TV[block] = grad_bV
        return grad_TV, None, None, None


def _rows(logits_TV: Tensor) -> Iterator[slice]:
    """Yield blocks of rows: on a CPU as many as a core's cache holds, on a device 64 MB of float32."""
    elements = CPU_BLOCK if logits_TV.device.type == "cpu" else DEVICE_BLOCK
    size = max(1, elements // logits_TV.shape[-1])
    return (slice(start, start + size) for start in range(0, len(logits_TV), size))


def cross_entropy_and_z(logits_BLV: Tensor, labels_BL: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy and the mean log^2 Z of the output head, from one logsumexp.

    Args:
        logits_BLV: output logits.
        labels_BL: int64; ``IGNORED_LABEL`` where there is no target.
        divisor: what both sums over target tokens are divided by.

    Returns:
        Two float32 scalars: nats per token, nats^2 per token.
    """
    real_T = labels_BL.flatten() != IGNORED_LABEL
    labels_T = labels_BL.flatten().masked_fill(~real_T, 0)
    return _CrossEntropyAndZ.apply(logits_BLV.flatten(0, -2), labels_T, real_T, divisor)
