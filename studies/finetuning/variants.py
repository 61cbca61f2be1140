"""The variants: what each changes in the base configuration, and in which table it stands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from studies.finetuning.paper import CAPACITY
from studies.finetuning.sources import SPARSE, Pretrained
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.config.training import TRAINABLE

BATCHES, START, PARAMETERS, CAPACITIES = "batches", "start", "parameters", "capacity"
DROPOUT, SENTINELS = "dropout", "sentinels"
TABLES: Mapping[str, str] = {
    BATCHES: "Batch size and learning rate (section 4.2)",
    START: "Weights and optimizer's state at the beginning",
    PARAMETERS: "Parameters that are trained (section 4.2)",
    CAPACITIES: "Capacity factors and dropped tokens (section 4.4)",
    DROPOUT: "Dropout and expert dropout (section 4.1)",
    SENTINELS: "Sentinels in inputs and targets (section 4.5)",
}
BATCH_FACTORS = (1, 4, 16)  # of the base's batch: the paper's 65,536, 262,144 and 1,048,576 tokens
RATE_FACTORS = (1.0, 0.5, 0.1)  # of the base's learning rate: the paper's 1e-3, 5e-4, 1e-4
DROPOUTS = (0.0, 0.1, 0.3)
EXPERT_DROPOUTS = (0.0, 0.2, 0.4)  # 0.4 is the largest of the paper
BALANCE = 1e-2  # coefficient of the load balance loss, where the base has none

Overrides = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One point of the study.

    Args:
        table: key of ``TABLES``.
        kind: of the model, ``SPARSE`` or ``DENSE``.
        setting: where it stands in its table, such as batch size and learning rate.
        overrides: of the base configuration with the weights of this model.
    """

    table: str
    kind: str
    setting: tuple[Any, ...]
    overrides: Overrides


@dataclass(frozen=True)
class Grid:
    """The batch sizes and learning rates of the study.

    Args:
        batches: sequences per step, over all ranks; the first is that of the base.
        rates: learning rates.
        same: what runs of different batch size have in common.
        ranks: processes of a run.
    """

    batches: tuple[int, ...]
    rates: tuple[float, ...]
    same: Literal["examples", "steps"]
    ranks: int

    def overrides(self, config: RunConfig, batch: int, rate: float) -> Overrides:
        """Return the overrides of a base configuration.

        Raises:
            ConfigError: the batch cannot be shared by the ranks.
        """
        training, changed = config.training, Overrides()
        if batch % self.ranks:
            raise ConfigError(f"--batch-sizes {batch} cannot be shared by {self.ranks} ranks: name a multiple")
        before = config.optimizer.learning_rate
        if rate != before:
            changed["optimizer.learning_rate"] = rate
            if config.optimizer.unit_learning_rate is not None:  # of AdamW: both peaks change alike
                unit = config.optimizer.unit_learning_rate * rate / before
                changed["optimizer.unit_learning_rate"] = float(f"{unit:.6g}")
        if batch != training.global_batch_size:
            changed["training.global_batch_size"] = batch
            changed["training.micro_batch_size"] = math.gcd(training.micro_batch_size, batch // self.ranks)
            if self.same == "examples":
                share = training.global_batch_size / batch
                changed["training.steps"] = max(1, round(training.steps * share))
                changed["optimizer.warmup_steps"] = max(1, round(config.optimizer.warmup_steps * share))
        return changed


def grid_of(
    config: RunConfig, batches: Sequence[int], rates: Sequence[float], same: Literal["examples", "steps"], ranks: int
) -> Grid:
    """Return the grid that the options describe; by default the paper's, relative to the base configuration."""
    base, rate = config.training.global_batch_size, config.optimizer.learning_rate
    return Grid(
        batches=tuple(batches) or tuple(base * factor for factor in BATCH_FACTORS),
        rates=tuple(rates) or tuple(float(f"{rate * factor:.6g}") for factor in RATE_FACTORS),
        same=same,
        ranks=ranks,
    )


def variants_of(models: Sequence[Pretrained], grid: Grid) -> dict[str, Variant]:
    """Return the variants by name, the most informative first: an unfinished study then answers the larger questions.

    Args:
        models: the sparse model, and its dense twin if there is one.
        grid: batch sizes and learning rates.

    Raises:
        ConfigError: see ``Grid.overrides``.
    """
    found: dict[str, Variant] = {}
    for batch in grid.batches:
        for rate in grid.rates:
            for model in models:
                overrides = grid.overrides(model.config, batch, rate)
                found[f"{model.kind}_b{batch}_lr{rate:g}"] = Variant(BATCHES, model.kind, (batch, rate), overrides)
    for model in models:
        for start, name in ((True, "slots"), (False, "no_slots")):
            overrides = {"training.init_optimizer": start}
            found[f"{model.kind}_{name}"] = Variant(START, model.kind, (start,), overrides)
        found[f"{model.kind}_scratch"] = Variant(START, model.kind, (None,), model.scratch)
    sparse = next(model for model in models if model.kind == SPARSE)
    for name in TRAINABLE:
        found[f"sparse_{name}"] = Variant(PARAMETERS, SPARSE, (name,), {"training.trainable": name})
    balance = sparse.config.architecture().load_balance_coefficient or BALANCE
    for train, evaluation, balanced in CAPACITY:
        overrides = {
            "model.train_capacity_factor": train,
            "model.eval_capacity_factor": evaluation,
            "model.load_balance_coefficient": balance if balanced else 0.0,
        }
        word = "balanced" if balanced else "unbalanced"
        found[f"sparse_cf{train:g}_{word}"] = Variant(CAPACITIES, SPARSE, (train, evaluation, balanced), overrides)
    for rate in DROPOUTS:
        for expert in EXPERT_DROPOUTS:
            overrides = {"model.dropout_rate": rate, "model.expert_dropout_rate": expert}
            found[f"sparse_dropout{rate:g}_expert{expert:g}"] = Variant(DROPOUT, SPARSE, (rate, expert), overrides)
    for on in (False, True):
        name = "sparse_sentinels" if on else "sparse_no_sentinels"
        found[name] = Variant(SENTINELS, SPARSE, (on,), {"data.sentinels": on})
    return found
