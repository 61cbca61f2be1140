"""All randomness in training as a function of a key, so that a resumed run repeats it."""

import torch

from model.seeding import seed_of


def seed_everything(*key: int | str) -> None:
    """Seed torch's global generators from ``key``; the layers draw from them in a fixed order.

    Args:
        key: what the draws depend on: ("train", seed, step, rank, micro-batch), or ("validation", seed, rank, batch).
    """
    torch.manual_seed(seed_of(*key))
