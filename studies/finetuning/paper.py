"""The paper's figures (Zoph et al. 2022, section 4 and appendix): means over SuperGLUE, of models of T5-Large's FLOPs.

Bars of its figure on batch sizes and learning rates are means over its other settings. Of parameter subsets, sentinels
and the optimizer's slots only what the paper says in words is here; its figures of these and of dropout are not known
to this project.
"""

from typing import NamedTuple

from studies.finetuning.sources import DENSE, SPARSE


class Dropped(NamedTuple):
    """A row of the table on capacity factors."""

    share: float | None  # of the tokens, in training
    score: float


# Input tokens of a batch → mean score, the smallest batch first.
BY_BATCH = {
    65_536: {DENSE: 84.0, SPARSE: 85.5},
    262_144: {DENSE: 84.6, SPARSE: 85.4},
    1_048_576: {DENSE: 84.5, SPARSE: 85.2},
}
# Learning rate → mean score, the largest first.
BY_RATE = {
    1e-3: {DENSE: 84.0, SPARSE: 85.9},
    5e-4: {DENSE: 84.4, SPARSE: 85.3},
    1e-4: {DENSE: 84.7, SPARSE: 84.9},
}
# Capacity factors of training and evaluation, and whether there is a load balance loss.
CAPACITY = {
    (0.75, 2.0, True): Dropped(0.106, 86.5),
    (1.25, 2.0, True): Dropped(0.003, 86.7),
    (2.0, 3.0, True): Dropped(0.0, 85.8),
    (4.0, 5.0, True): Dropped(None, 86.4),
    (0.75, 2.0, False): Dropped(0.156, 85.7),
    (1.25, 2.0, False): Dropped(0.029, 85.8),
    (2.0, 3.0, False): Dropped(0.004, 85.9),
    (4.0, 5.0, False): Dropped(0.0, 86.4),
}
SUBSETS = {
    "all": "as `non_moe`",
    "non_moe": "as `all`",
    "dense_feed_forward": "slightly better",
    "moe": "far worse",
}
SENTINELS = {False: "as good in the end", True: "learns faster"}
SLOTS = {True: "kept", False: "hurts"}
