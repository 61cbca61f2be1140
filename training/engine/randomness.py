"""All randomness in training as a function of (seed, step, micro-batch, rank), so that a resumed run repeats it."""

import hashlib

import torch


def seed_everything(*key: int | str) -> None:
    """Seed torch's global generators from ``key``; the layers draw from them in a fixed order.

    Args:
        key: what the draws depend on, such as (seed, "train", step, micro-batch, rank).
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
