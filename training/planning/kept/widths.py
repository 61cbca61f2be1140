"""Bytes of a number, and which code computes: what decides how much the same tensors take.

Two paths of the model's code differ in what they keep. On a GPU, attention is torch's memory-efficient kernel, which
keeps queries, keys, values, its output and a logsumexp per query, but no probabilities; experts are grouped products
(bf16 on Hopper or Blackwell), which keep no GELU; routing is one kernel. On a CPU, attention keeps its probabilities,
and experts are a loop.
"""

from dataclasses import dataclass
from typing import Literal

from model.architecture import Architecture

Device = Literal["gpu", "cpu"]
Precision = Literal["fp32", "bf16", "bf16_autocast"]
FLOAT, INT64, BOOL = 4, 8, 1  # bytes of a number
GROUPED_ALIGNMENT = 8  # see ``model.moe.grouped_geglu``
KERNEL_EXPERTS = 256  # see ``model.moe.token_choice_kernels``
BLOCK = {"gpu": 1 << 24, "cpu": 1 << 18}  # logits that the loss has in float32 at a time, see ``model.losses``


@dataclass(frozen=True)
class Widths:
    """Bytes of the numbers of each kind.

    Args:
        stream: of the residual stream and of what norms return.
        product: of the operands and results of matrix products.
        weight: of a weight.
        autocast: whether products cast their operands.
        zero3: whether weights are gathered module by module, and no casts are kept.
        device: whose code computes.
    """

    stream: int
    product: int
    weight: int
    autocast: bool
    zero3: bool
    device: Device

    @property
    def gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.device == "gpu"

    @property
    def keeps_casts(self) -> bool:
        """Whether dense modules keep their weights in the lower precision from the forward to the backward pass."""
        return self.autocast and not self.zero3

    @property
    def linear_input(self) -> int:
        """Bytes of a number of what a plain linear map keeps of an input of the residual stream's type.

        Under autocast it keeps the cast that it has made; that of ZeRO 3 keeps what it is given, and casts again.
        """
        return self.stream if self.zero3 else self.product

    def groups_experts(self, model: Architecture) -> bool:
        """Return whether experts are grouped products: on a GPU in bf16."""
        inner = model.d_ff if model.feed_forward == "geglu" else model.d_ff // 2
        aligned = not (model.d_model % GROUPED_ALIGNMENT or inner % GROUPED_ALIGNMENT)
        return self.gpu and self.product == 2 and aligned and model.feed_forward_bias == "none"

    def routes_by_kernel(self, model: Architecture, *, decoder: bool) -> bool:
        """Return whether routing is one kernel: token choice with capacity, from left to right, on a GPU."""
        prioritized = model.batch_prioritized and not decoder
        by_token = model.stack_gating(decoder=decoder) != "expert_choice" and model.capacity != "dropless"
        return self.gpu and by_token and not prioritized and model.num_experts <= KERNEL_EXPERTS


def widths_of(precision: Precision, zero_stage: int, device: Device) -> Widths:
    """Return the widths of a run's precision on a device."""
    low = precision != "fp32"
    full_stream = precision != "bf16"
    return Widths(
        stream=FLOAT if full_stream else 2,
        product=2 if low else FLOAT,
        weight=FLOAT if full_stream else 2,
        autocast=precision == "bf16_autocast",
        zero3=zero_stage == 3,
        device=device,
    )
