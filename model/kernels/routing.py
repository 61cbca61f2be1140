"""Token-choice routing in three passes forward and one backward, in place of some seventy operations.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, C = capacity slots of an expert
and group, T = G * S tokens, R = E * G * C rows of the experts' buffer, P = parts of a group's tokens.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

REQUESTS = 1024  # that are numbered at a time
POLICIES = {"all": 0, "none": 1, "random": 2, "threshold": 3}


@triton.jit
def _probabilities(logits, t, here, experts, EXPERTS: tl.constexpr):
    """Load the logits of tokens; return them, their softmax and their logsumexp."""
    e = tl.arange(0, EXPERTS)[None, :]
    x = tl.load(logits + t[:, None] * experts + e, mask=here[:, None] & (e < experts), other=0.0)
    x = tl.where(e < experts, x, float("-inf"))
    most = tl.max(x, 1)
    powers = tl.exp(x - most[:, None])
    total = tl.sum(powers, 1)
    return x, powers / total[:, None], most + tl.log(total)


@triton.jit
def _best(rest, experts, EXPERTS: tl.constexpr):
    """Return the largest probability of each token, its expert, and what is left without it."""
    e = tl.arange(0, EXPERTS)[None, :]
    best = tl.max(rest, 1)
    index = tl.min(tl.where(rest == best[:, None], e, EXPERTS), 1)  # the lower index wins ties
    index = tl.minimum(index, experts - 1)  # NaN equals nothing
    return best, index, tl.where(e == index[:, None], -1.0, rest)


@triton.jit
def _choose(
    logits, mask, draws, expert, queue, asked, gate, prob_GPE, count_GPE, sums_GP3, size, tokens, experts, threshold,
    CHOICES: tl.constexpr, RAW: tl.constexpr, POLICY: tl.constexpr, EXPERTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    g, part = tl.program_id(0), tl.program_id(1)
    s = part * TOKENS + tl.arange(0, TOKENS)
    here = s < size
    t = (g * size + s).to(tl.int64)
    real = tl.load(mask + t, mask=here, other=0) != 0
    x, p, log_z = _probabilities(logits, t, here, experts, EXPERTS)

    rest, chosen = p, tl.zeros((TOKENS,), tl.float32)
    for _ in tl.static_range(CHOICES):
        best, index, rest = _best(rest, experts, EXPERTS)
        chosen += best
    rest = p
    for n in tl.static_range(CHOICES):
        best, index, rest = _best(rest, experts, EXPERTS)
        requested = real
        if CHOICES > 1 and not RAW:
            best = best / chosen
        if n > 0 and not RAW:
            if POLICY == 2:
                draw = tl.load(draws + (n - 1) * tokens + t, mask=here, other=1.0)
                requested = requested & (draw < best / threshold)
            elif POLICY == 3:
                requested = requested & (best > threshold)
            elif POLICY == 1:
                requested = requested & (s < 0)
        at = n * tokens + t
        tl.store(expert + at, index.to(tl.int64), mask=here)
        tl.store(gate + at, best, mask=here)
        tl.store(asked + at, requested.to(tl.uint8), mask=here)
        tl.store(queue + at, tl.where(requested, index, experts), mask=here)

    e = tl.arange(0, EXPERTS)
    _, first, _ = _best(p, experts, EXPERTS)
    at = g * tl.num_programs(1) + part
    counted = tl.where((e[None, :] == first[:, None]) & real[:, None], 1.0, 0.0)
    tl.store(count_GPE + at * experts + e, tl.sum(counted, 0), mask=e < experts)
    tl.store(prob_GPE + at * experts + e, tl.sum(tl.where(real[:, None], p, 0.0), 0), mask=e < experts)
    tl.store(sums_GP3 + at * 3, tl.sum(tl.where(real, 1.0, 0.0), 0))
    tl.store(sums_GP3 + at * 3 + 1, tl.sum(tl.where(real, log_z * log_z, 0.0), 0))
    tl.store(sums_GP3 + at * 3 + 2, tl.max(tl.where(real, tl.max(x, 1), float("-inf")), 0))


@triton.jit
def _assign(
    queue, gate, slot, position, kept, token, size, tokens, experts, capacity, rows,
    CHOICES: tl.constexpr, REQUESTS: tl.constexpr,
):  # fmt: skip
    """Number the requests of one expert and group; the program after the last expert's ends those that are none."""
    g, e = tl.program_id(0), tl.program_id(1)
    slots = tl.where(e < experts, capacity, 0)
    first = (e * tl.num_programs(0) + g) * capacity  # row of the buffer
    taken = 0
    for start in range(0, CHOICES * size, REQUESTS):
        q = start + tl.arange(0, REQUESTS)
        t = g * size + q % size
        at = (q // size) * tokens + t
        mine = tl.load(queue + at, mask=q < CHOICES * size, other=-1) == e
        number = taken + tl.cumsum(mine.to(tl.int32), 0) - 1
        has = mine & (number < slots)
        tl.store(position + at, number.to(tl.int64), mask=mine)
        tl.store(kept + at, has.to(tl.uint8), mask=mine)
        tl.store(slot + at, tl.where(has, first + number, rows).to(tl.int64), mask=mine)
        tl.store(gate + at, tl.zeros((REQUESTS,), tl.float32), mask=mine & (number >= slots))
        tl.store(token + first + number, t.to(tl.int64), mask=has)
        taken += tl.sum(mine.to(tl.int32), 0)
    for start in range(0, slots, REQUESTS):  # rows that stay empty
        c = start + tl.arange(0, REQUESTS)
        empty = tl.zeros((REQUESTS,), tl.int64) + tokens
        tl.store(token + first + c, empty, mask=(c >= taken) & (c < slots))


@triton.jit
def _sum_up(
    prob_GPE, count_GPE, sums_GP3, count_GE, sums_G4, experts, parts, EXPERTS: tl.constexpr, PARTS: tl.constexpr
):
    """Add the parts of a group: real tokens, squares of logsumexp, largest logit and load-balance loss."""
    g = tl.program_id(0)
    e, column = tl.arange(0, EXPERTS)[None, :], tl.arange(0, EXPERTS)
    prob, count = tl.zeros((EXPERTS,), tl.float32), tl.zeros((EXPERTS,), tl.float32)
    real, square, most = 0.0, 0.0, float("-inf")
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        here = part < parts
        at = g * parts + part
        cell = at[:, None] * experts + e
        prob += tl.sum(tl.load(prob_GPE + cell, mask=here[:, None] & (e < experts), other=0.0), 0)
        count += tl.sum(tl.load(count_GPE + cell, mask=here[:, None] & (e < experts), other=0.0), 0)
        real += tl.sum(tl.load(sums_GP3 + at * 3, mask=here, other=0.0), 0)
        square += tl.sum(tl.load(sums_GP3 + at * 3 + 1, mask=here, other=0.0), 0)
        most = tl.maximum(most, tl.max(tl.load(sums_GP3 + at * 3 + 2, mask=here, other=float("-inf")), 0))
    divisor = tl.maximum(real, 1.0)
    tl.store(count_GE + g * experts + column, count / divisor, mask=column < experts)
    tl.store(sums_G4 + g * 4, real)
    tl.store(sums_G4 + g * 4 + 1, square)
    tl.store(sums_G4 + g * 4 + 2, most)
    tl.store(sums_G4 + g * 4 + 3, experts * tl.sum(count / divisor * (prob / divisor), 0))


@triton.jit
def _backward(
    logits, mask, expert, kept, share_GE, sums_G4, grad_gate, grad_balance, grad_z, divisor, grad_logits,
    groups, size, tokens, experts,
    CHOICES: tl.constexpr, RAW: tl.constexpr, EXPERTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    g, part = tl.program_id(0), tl.program_id(1)
    s = part * TOKENS + tl.arange(0, TOKENS)
    here = s < size
    t = (g * size + s).to(tl.int64)
    e = tl.arange(0, EXPERTS)[None, :]
    real = tl.load(mask + t, mask=here, other=0) != 0
    _, p, log_z = _probabilities(logits, t, here, experts, EXPERTS)

    chosen, along = tl.zeros((TOKENS,), tl.float32), tl.zeros((TOKENS,), tl.float32)
    grad_p = tl.zeros((TOKENS, EXPERTS), tl.float32)
    of_chosen = tl.zeros((TOKENS, EXPERTS), tl.float32)
    for n in tl.static_range(CHOICES):
        at = n * tokens + t
        own = e == tl.load(expert + at, mask=here, other=0)[:, None]
        has = tl.load(kept + at, mask=here, other=0) != 0
        grad = tl.load(grad_gate + at, mask=here & has, other=0.0)
        prob = tl.sum(tl.where(own, p, 0.0), 1)
        chosen += prob
        along += grad * prob
        of_chosen += tl.where(own, 1.0, 0.0)
        grad_p += tl.where(own, grad[:, None], 0.0)
    if CHOICES > 1 and not RAW:  # gate = p / sum of the chosen p
        grad_p = (grad_p - of_chosen * (along / chosen)[:, None]) / chosen[:, None]
    column = tl.arange(0, EXPERTS)
    share = tl.load(share_GE + g * experts + column, mask=column < experts, other=0.0)
    scale = tl.load(grad_balance) * experts / (tl.maximum(tl.load(sums_G4 + g * 4), 1.0) * groups)
    grad_p += tl.where(real[:, None], (share * scale)[None, :], 0.0)
    grad_x = p * (grad_p - tl.sum(p * grad_p, 1)[:, None])
    slope = 2.0 * log_z * (tl.load(grad_z) / tl.load(divisor))
    grad_x += tl.where(real, slope, 0.0)[:, None] * p
    tl.store(grad_logits + t[:, None] * experts + e, grad_x, mask=here[:, None] & (e < experts))


class Routed(NamedTuple):
    """What ``choose`` returns, beside what ``backward`` needs of it."""

    expert_NGS: Tensor  # int64
    position_NGS: Tensor  # int64
    kept_NGS: Tensor  # bool
    gate_NGS: Tensor  # float32
    slot_NT: Tensor  # int64, R if not kept
    token_R: Tensor  # int64, T for an empty row
    share_GE: Tensor  # float32, f_i of every group
    sums_G4: Tensor  # float32: real tokens, sum of squares of logsumexp, largest logit, load-balance loss


def _sizes(experts: int) -> dict[str, int]:
    """Return the widths of a program's block, which must fit the registers: tokens of a part, padded experts."""
    padded = triton.next_power_of_2(experts)
    return {"EXPERTS": padded, "TOKENS": min(64, max(16, 2048 // padded))}


def choose(
    logits_GSE: Tensor, mask_GS: Tensor, draw_NGS: Tensor | None, *,
    choices: int, raw: bool, policy: str, threshold: float, capacity: int,
) -> tuple[Routed, Tensor]:  # fmt: skip
    """Choose experts, compute gates, make requests, assign capacity slots; see ``model.moe.token_choice``.

    Args:
        logits_GSE: float32.
        mask_GS: bool.
        draw_NGS: uniform numbers for all choices but the first; None if ``policy`` draws none.
        choices: N.
        raw: whether gates are the probabilities, and all choices requested.
        policy: ``second_policy``.
        threshold: ``second_threshold``.
        capacity: C.

    Returns:
        What ``backward`` needs too, and which choices are requests, bool ``[N, G, S]``.
    """
    logits_GSE, mask_GS = logits_GSE.contiguous(), mask_GS.contiguous()
    groups, size, experts = logits_GSE.shape
    block = _sizes(experts)
    tokens, parts, rows = groups * size, triton.cdiv(size, block["TOKENS"]), experts * groups * capacity
    like = logits_GSE
    expert_NGS, position_NGS, slot_NGS = (
        torch.empty(choices, groups, size, dtype=torch.int64, device=like.device) for _ in range(3)
    )
    queue_NGS = torch.empty(choices, groups, size, dtype=torch.int32, device=like.device)
    kept_NGS, requested_NGS = (
        torch.empty(choices, groups, size, dtype=torch.bool, device=like.device) for _ in range(2)
    )
    token_R = torch.empty(rows, dtype=torch.int64, device=like.device)
    gate_NGS = like.new_empty(choices, groups, size)
    prob_GPE, count_GPE = (like.new_empty(groups, parts, experts) for _ in range(2))
    sums_GP3, share_GE, sums_G4 = (like.new_empty(groups, *rest) for rest in ((parts, 3), (experts,), (4,)))
    draws = logits_GSE if draw_NGS is None else draw_NGS.contiguous()
    _choose[(groups, parts)](
        logits_GSE, mask_GS.view(torch.uint8), draws, expert_NGS, queue_NGS, requested_NGS.view(torch.uint8), gate_NGS,
        prob_GPE, count_GPE, sums_GP3, size, tokens, experts, threshold, CHOICES=choices, RAW=raw,
        POLICY=POLICIES[policy], **block,
    )  # fmt: skip
    _assign[(groups, experts + 1)](
        queue_NGS, gate_NGS, slot_NGS, position_NGS, kept_NGS.view(torch.uint8), token_R, size, tokens, experts,
        capacity, rows, CHOICES=choices, REQUESTS=REQUESTS,
    )  # fmt: skip
    _sum_up[(groups,)](
        prob_GPE, count_GPE, sums_GP3, share_GE, sums_G4, experts, parts, EXPERTS=block["EXPERTS"], PARTS=16
    )
    routed = Routed(
        expert_NGS, position_NGS, kept_NGS, gate_NGS, slot_NGS.view(choices, tokens), token_R, share_GE, sums_G4
    )
    return routed, requested_NGS


def backward(
    logits_GSE: Tensor, mask_GS: Tensor, routed: Routed, divisor: Tensor, grad_gate_NGS: Tensor, grad_balance: Tensor,
    grad_z: Tensor, *, raw: bool,
) -> Tensor:  # fmt: skip
    """Return the gradient of the logits, float32.

    Args:
        logits_GSE: as for ``choose``.
        mask_GS: as for ``choose``.
        routed: what ``choose`` returned.
        divisor: of the sum of squares in the z-loss, float32 scalar.
        grad_gate_NGS: gradient of the gates.
        grad_balance: gradient of the mean over groups of the load-balance loss, float32 scalar.
        grad_z: gradient of the z-loss, float32 scalar.
        raw: as for ``choose``.
    """
    logits_GSE, mask_GS, grad_gate_NGS = (x.contiguous() for x in (logits_GSE, mask_GS, grad_gate_NGS))
    groups, size, experts = logits_GSE.shape
    grad_GSE, block = torch.empty_like(logits_GSE), _sizes(experts)
    _backward[(groups, triton.cdiv(size, block["TOKENS"]))](
        logits_GSE, mask_GS.view(torch.uint8), routed.expert_NGS, routed.kept_NGS.view(torch.uint8), routed.share_GE,
        routed.sums_G4, grad_gate_NGS, grad_balance, grad_z, divisor, grad_GSE, groups, size, groups * size, experts,
        CHOICES=len(routed.expert_NGS), RAW=raw, **block,
    )  # fmt: skip
    return grad_GSE
