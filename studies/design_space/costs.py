"""The counted cost of each trial, as ``--dry-run`` prints it: FLOPs, parameters, widths of equal FLOPs."""

from collections.abc import Sequence

from studies.design_space.trials import Trial
from training.cost import cost_of

HEADER = ("variants", "d_ff", "MFLOPs/token", "of baseline", "parameters", "active", "settings")


def format_costs(trials: Sequence[Trial]) -> str:
    """Format a table of plain text: FLOPs are of forward and backward pass, per position of encoder and decoder."""
    costs = [cost_of(trial.config) for trial in trials]
    first = costs[0].training_flops_of_token
    rows = [HEADER]
    for trial, cost in zip(trials, costs, strict=True):
        flops = cost.training_flops_of_token
        settings = [f"{key.partition('.')[2]}={value}" for key, value in trial.overrides.items()]
        rows.append(
            (
                " = ".join(trial.names),
                str(trial.config.architecture().d_ff),
                f"{flops / 1e6:,.3f}",
                f"{flops / first:.4f}",
                f"{cost.parameters_total:,}",
                f"{cost.parameters_active:,}",
                " ".join(settings) or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
