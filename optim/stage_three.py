"""What ZeRO 3 does wrongly with float32 weights: it keeps them twice.

The optimizer can step a rank's partitions themselves, and DeepSpeed 0.19.8 means to let it: ``_create_fp32_partitions``
of ``runtime/zero/stage3.py`` makes copies only where dtype or device are others than those of master weights. But it
compares a tensor's ``torch.device`` with the name of a device, and these are never equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from common.logs import get_logger

logger = get_logger(__name__)


@contextmanager
def weights_once() -> Iterator[None]:
    """While it is entered, ZeRO 3 makes optimizers that step float32 weights themselves, without a copy.

    A method of DeepSpeed's is wrapped, so that it compares a device with a device and takes its own branch. There is no
    option for that, and once the optimizer is made it is too late: the GPU has had room for both. Copies remain where
    weights and optimizer are apart (``offload_optimizer``, ``offload_param``), and of bfloat16 weights.

    A DeepSpeed that is not as expected keeps its copies, and a line of the log says so.
    """
    create = vars(DeepSpeedZeroOptimizer_Stage3).get("_create_fp32_partitions")
    if create is None:
        logger.warning("ZeRO 3 of this DeepSpeed may keep float32 weights twice: it has no _create_fp32_partitions")
        yield
        return

    def create_once(zero: Any) -> None:
        name = zero.device
        if isinstance(name, str) and not zero.offload_optimizer:
            zero.device = torch.device(name)
        try:
            create(zero)
        finally:
            zero.device = name
        if _has_copies(zero):
            logger.warning("ZeRO 3 of this DeepSpeed keeps float32 weights twice: optim/stage_three.py has no effect")

    DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions = create_once
    try:
        yield
    finally:
        DeepSpeedZeroOptimizer_Stage3._create_fp32_partitions = create


def _has_copies(zero: Any) -> bool:
    """Whether weights that have dtype and device of their masters are not these tensors themselves."""
    pairs = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    return not zero.offload_optimizer and any(
        own.dtype == master.dtype and own.device == master.device and own is not master
        for own, master in pairs
        if own is not None  # weights on a disk
    )
