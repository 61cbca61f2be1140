"""Terms of the objective: L = L_CE + c_B L_B + c_Z L_Z + c_O * mean log^2 Z of the output head. All in float32.

Shape suffixes: G = groups, S = tokens of a group, E = experts, B = sequences, L = target tokens, V = vocabulary.
"""

from typing import NamedTuple

from torch import Tensor

IGNORED_LABEL = -100


class LossDivisors(NamedTuple):
    """Divisors of the sums over tokens: float32 scalars on the model's device.

    For a loss that is exact over a global batch, pass the real tokens of the global batch divided by the number of its
    micro-batches on all ranks: the mean of the micro-batches' losses is then the loss of the global batch.
    """

    encoder: Tensor  # for the router z-losses of the encoder
    decoder: Tensor  # for the router z-losses of the decoder, cross-entropy and output z-loss


class RouterLosses(NamedTuple):
    """Router losses and statistics of one sparse layer, each a scalar."""

    load_balance: Tensor  # float32, L_B
    z: Tensor  # float32, L_Z
    max_logit: Tensor  # float32, without gradient
    dropped_tokens: Tensor  # int64, real tokens that no expert processes
    real_tokens: Tensor  # int64


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


def cross_entropy_and_z(logits_BLV: Tensor, labels_BL: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy and the mean log^2 Z of the output head, from one logsumexp.

    Args:
        logits_BLV: output logits.
        labels_BL: int64; ``IGNORED_LABEL`` where there is no target.
        divisor: what both sums over target tokens are divided by.

    Returns:
        Two float32 scalars: nats per token, nats^2 per token.
    """
    logits_BLV = logits_BLV.float()
    real_BL = labels_BL != IGNORED_LABEL
    log_z_BL = logits_BLV.logsumexp(-1)
    target_BL = logits_BLV.gather(-1, labels_BL.masked_fill(~real_BL, 0).unsqueeze(-1)).squeeze(-1)
    cross_entropy = ((log_z_BL - target_BL) * real_BL).sum() / divisor
    return cross_entropy, (log_z_BL.square() * real_BL).sum() / divisor
