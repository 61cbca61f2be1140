"""Metrics of classes, with scikit-learn. References and predictions are numbers of classes; -1 is none of them."""

import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from data.tasks.task import Metric


def accuracy(references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``accuracy``: the share of predictions that equal their references."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": 100 * accuracy_score(references, predictions)}


def f1(references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``f1`` of class 1 against class 0; a prediction that is neither counts as the wrong one."""
    from sklearn.metrics import f1_score

    right, said = np.asarray(references), np.asarray(predictions)
    said = np.where((said != 0) & (said != 1), 1 - right, said)
    return {"f1": 100 * f1_score(right, said, zero_division=0)}


def mean_f1(classes: int) -> Metric:
    """Return the metric ``mean_Nclass_f1``: the unweighted mean of the F1 of each class."""

    def metric(references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]) -> dict[str, float]:
        from sklearn.metrics import f1_score

        labels = list(range(classes))
        value = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
        return {f"mean_{classes}class_f1": 100 * value}

    return metric


def matthews(references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``matthews_corrcoef``, CoLA's metric."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_corrcoef": 100 * matthews_corrcoef(references, predictions)}


def exact_match_of_groups(
    references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]
) -> dict[str, float]:
    """Return ``exact_match``: the share of groups all of whose predictions are right (MultiRC: of a question)."""
    right: dict[Hashable, bool] = defaultdict(lambda: True)
    for reference, prediction, group in zip(references, predictions, groups, strict=True):
        right[group] &= reference == prediction
    return {"exact_match": 100 * float(np.mean(list(right.values())))}


def correlations(references: Sequence[Any], predictions: Sequence[Any], groups: Sequence[Hashable]) -> dict[str, float]:
    """Return ``pearson_corrcoef`` and ``spearman_corrcoef``, STS-B's metrics; NaN if all predictions are the same."""
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return {
            "pearson_corrcoef": 100 * float(pearsonr(references, predictions)[0]),
            "spearman_corrcoef": 100 * float(spearmanr(references, predictions)[0]),
        }
