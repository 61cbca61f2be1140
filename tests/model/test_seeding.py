"""Seeds are part of the format: initial weights and resumed runs depend on them."""

from model.seeding import seed_of


def test_seeds_never_change():
    assert seed_of("train", 0, 17, 3, 1) == 7838608576267939171
    assert seed_of(0, "encoder.blocks.3.feed_forward.experts.w1", 5) == 3089879006559362259


def test_every_part_of_a_key_and_their_order_matter():
    keys = [(1, 2), (2, 1), (12,), (1,), (1, 2, 0), ("a", 1, 2)]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)
