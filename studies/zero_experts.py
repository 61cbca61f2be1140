"""What the experts of trained runs are worth: the held-out cross-entropy when they give 0, layer by layer.

python -m studies.zero_experts runs/tiny
python -m studies.zero_experts runs/tiny --rows docs/zero_experts.jsonl

The tokens of a silent layer pass through its residual connection alone. Nothing is trained: the model had its experts
while it learned, so the figures say what it relies on, not what a model without experts would reach.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.paths import check_can_write_file, path_argument
from common.program import run
from common.strict_json import finite_or_null, to_json
from studies.runner.options import report_user_error
from training.checkpoint.resume import read_checkpoint
from training.config.errors import ConfigError
from training.config.run import validate
from training.export.folders import check_run
from training.monitoring.columns import CROSS_ENTROPY
from training.reevaluate import Change, reevaluate

HEADER = "| Run | Whole | Without | Cross-entropy | Cost, nats |\n| --- | --- | --- | --- | --- |"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m studies.zero_experts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", type=path_argument, help="folders of runs of sparse models")
    parser.add_argument("--rows", type=path_argument, help="append the results to this file, a JSON object per run")
    return parser.parse_args()


def silences(layers: list[str]) -> dict[str, tuple[str, ...]]:
    """Return what is silent in turn: each sparse layer, each stack that has several, all. Label → layers."""
    found: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in layers}
    for stack in ("encoder", "decoder"):
        of_stack = tuple(layer for layer in layers if layer.startswith(f"{stack}_"))
        if len(of_stack) > 1:
            found[f"the {stack}"] = of_stack
    return found | ({"all": tuple(layers)} if len(layers) > 1 else {})


def sparse_layers(run_dir: Path) -> list[str]:
    """Return the names of a run's sparse layers, such as ``decoder_1``.

    Raises:
        ConfigError: the folder holds no checkpoint, or no sparse model.
    """
    check_run(run_dir)
    saved = read_checkpoint(run_dir, contents=False).state.config
    layers = validate(saved).architecture().sparse_layer_names()
    if not layers:
        raise ConfigError(f"{run_dir} is a dense model: name a run with model.num_experts above 0")
    return layers


def costs_of(run_dir: Path, layers: list[str]) -> dict[str, Any]:
    """Return the row of a run: its cross-entropy, nats per target token, and how much higher it is without experts.

    Args:
        run_dir: the run's folder.
        layers: ``sparse_layers`` of it.

    Raises:
        ConfigError: there is no intact checkpoint, or vocabulary or text are not there.
    """
    silent = silences(layers)
    whole, *without = reevaluate(run_dir, [Change(), *(Change(without=names) for names in silent.values())])
    base = whole[CROSS_ENTROPY]
    costs = {label: terms[CROSS_ENTROPY] - base for label, terms in zip(silent, without, strict=True)}
    return {"run": run_dir.name, CROSS_ENTROPY: base, "costs": costs}


def format_row(row: dict[str, Any]) -> str:
    """Format one line of the table for each silence."""
    whole = row[CROSS_ENTROPY]
    return "\n".join(
        f"| {row['run']} | {whole:.4f} | {label} | {whole + cost:.4f} | {cost:+.4f} |"
        for label, cost in row["costs"].items()
    )


def main() -> int:
    """Evaluate the runs, one after the other; return the exit code."""
    arguments = parse_arguments()
    try:
        if arguments.rows is not None:
            check_can_write_file(arguments.rows, "--rows")
        layers_of = {run_dir: sparse_layers(run_dir) for run_dir in arguments.run}
        for number, (run_dir, layers) in enumerate(layers_of.items()):
            row = costs_of(run_dir, layers)
            print(*([HEADER] if number == 0 else []), format_row(row), sep="\n", flush=True)
            if arguments.rows is not None:
                arguments.rows.parent.mkdir(parents=True, exist_ok=True)
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(to_json(finite_or_null(row)) + "\n")
    except ValueError as error:
        return report_user_error(error)
    return 0


if __name__ == "__main__":
    run(main)
