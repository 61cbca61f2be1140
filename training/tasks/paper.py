"""What the paper's models reach (Zoph et al. 2022), by task and metric.

Dense-L and ST-MoE-L: validation scores. ST-MoE-32B, and COPA of ST-MoE-L: as public lists of results quote the paper,
which do not always name the split; the mean of SuperGLUE is of its validation rows. Figures that no list confirms are
missing.
"""

MODELS = ("Dense-L", "ST-MoE-L", "ST-MoE-32B")
MEAN = "mean"  # the metric of a group of tasks

# (task or group, metric): figures in the order of MODELS; None where there is none.
PAPER: dict[tuple[str, str], tuple[float | None, float | None, float | None]] = {
    ("superglue", MEAN): (85.1, 87.4, 93.2),
    ("boolq", "accuracy"): (None, None, 92.4),
    ("copa", "accuracy"): (None, 91.0, 99.2),
    ("multirc", "f1"): (None, None, 89.6),
    ("xsum", "rouge2"): (19.9, 21.8, 27.1),
    ("cnn_dailymail", "rouge2"): (20.3, 20.7, None),
    ("winogrande", "accuracy"): (75.4, 81.7, 96.1),
    ("anli_r3", "accuracy"): (54.3, 57.3, None),
    ("arc_easy", "accuracy"): (63.5, 75.4, 95.2),
    ("arc_challenge", "accuracy"): (50.2, 56.9, 86.5),
    ("trivia_qa", "em"): (28.1, 33.8, None),
    ("natural_questions", "em"): (27.2, 29.5, None),
    ("web_questions", "em"): (30.5, 33.2, None),
}


def figures(task: str, metric: str) -> dict[str, float]:
    """Return the figures of the paper's models, by model, as far as there are any."""
    found = zip(MODELS, PAPER.get((task, metric), ()), strict=False)
    return {model: value for model, value in found if value is not None}
