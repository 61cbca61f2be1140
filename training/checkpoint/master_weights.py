"""Gives the network the optimizer's master weights after a checkpoint has changed them."""

from typing import Any

import torch


@torch.no_grad()
def refresh_weights(engine: Any) -> None:
    """Copy the master weights into the network's own; collective."""
    zero, stage = engine.optimizer, int(engine.zero_optimization_stage())
    if stage == 3:
        zero.checkpoint_event_prologue()  # no parameter may be gathered while its partition changes
        for sub_group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        zero.checkpoint_event_epilogue()
    elif stage:
        zero.update_lp_params()
    elif hasattr(zero, "fp32_groups"):  # bf16 weights with master copies
        for low, master in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            torch._foreach_copy_(low, master)
