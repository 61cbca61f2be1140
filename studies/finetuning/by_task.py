"""Tasks fine-tuned alone and as a mixture, with pretrained weights and from scratch, beside their baselines.

python -m studies.finetuning.by_task
python -m studies.finetuning.by_task --rows docs/finetuning_study/by_task.jsonl --split test --report

It trains nothing: the rows are those that ``python -m studies.finetuning`` appended, called with one task, and with all
of them, as ``--tasks``. Each such call may have its own steps, batch and lengths.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.arguments import Parser
from common.paths import check_can_read_file, path_argument
from common.program import run
from studies.finetuning.study import DOCUMENT
from studies.finetuning.tables import baseline_of, format_points
from studies.results.rows import RUN, Row, read_rows
from studies.results.section import Section, describe_runs
from studies.results.tables import markdown
from studies.runner.options import report_user_error
from studies.runner.statistics import mean_of
from training.config.errors import ConfigError

ROWS = Path("docs/finetuning_study/by_task.jsonl")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m studies.finetuning.by_task",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--rows", type=path_argument, default=ROWS, help="file of results of studies.finetuning (%(default)s)")
    add("--split", help="whose scores are compared (that of all rows)")
    add("--report", action="store_true", help="write the table into --document; without it, print it")
    add("--document", type=path_argument, default=DOCUMENT, help="document that --report writes into (%(default)s)")
    return parser.parse_args()


def main() -> int:
    """Print the table, or write it into a document; return the exit code."""
    arguments = parse_arguments()
    try:
        return _main(arguments)
    except ValueError as error:
        return report_user_error(error)


def _main(arguments: argparse.Namespace) -> int:
    check_can_read_file(arguments.rows, "--rows")
    rows = [row for row in read_rows(arguments.rows) if row["kind"] == RUN and row.get("tasks")]
    splits = sorted({row["asked"]["split"] for row in rows})
    if not splits:
        raise ConfigError(f"--rows {arguments.rows} has no scores: append some with python -m studies.finetuning")
    if arguments.split is None and len(splits) > 1:
        raise ConfigError(f"--rows {arguments.rows} has scores of {' and '.join(splits)} rows: choose with --split")
    split = arguments.split or splits[0]
    runs = [row for row in rows if row["asked"]["split"] == split]
    if not runs:
        raise ConfigError(f"--rows {arguments.rows} has no scores of --split {split}: it has those of {splits[0]}")
    what = f"{describe_runs(runs, len({row['key'] for row in runs}))}. Scores are in percent, of the {split} rows, "
    what += "after the last step; ± is the standard error over seeds."
    parts = [part for part in (what, format_table(runs), _rising(runs)) if part]
    if not arguments.report:
        print("\n\n".join(parts))
        return 0
    section = Section("finetuning.by_task", ["--rows", str(arguments.rows), "--split", split])
    section.write(arguments, parts, len(runs))
    return 0


def format_table(runs: Sequence[Row]) -> str:
    """Return a line for each configuration, and for each baseline, as Markdown.

    Args:
        runs: rows of one split.
    """
    widest_first = sorted(runs, key=lambda row: -len(row["tasks"]))
    names = list(dict.fromkeys(name for row in widest_first for name in row["tasks"]))
    by_key: dict[str, list[Row]] = {}
    for row in runs:
        by_key.setdefault(row["key"], []).append(row)
    ordered = sorted(by_key.values(), key=lambda of: _order(of[0], names))
    lines = []
    for of in ordered:
        first, seeds = of[0], sorted(row["seed"] for row in of)
        scores = [[row["tasks"][name]["score"] for row in of if name in row["tasks"]] for name in names]
        lines.append(
            [
                " + ".join(first["tasks"]),
                first["model"],
                "pretrained" if first["weights"] else "random",
                f"{first['batch']} x {first['steps']:,}",
                ", ".join(map(str, seeds)),
                *(format_points(mean_of(values)) for values in scores),
            ]
        )
    for baseline in dict.fromkeys(b for row in runs for task in row["tasks"].values() for b in task["baselines"]):
        found = [baseline_of(runs, name, baseline) for name in names]
        lines.append([baseline.replace("_", " "), "-", "-", "-", "-", *found])
    header = ["Trained on", "Model", "Weights", "Batch x steps", "Seeds"]
    header += [f"{name}, {_examples(runs, name)} (↑)" for name in names]
    return markdown("**Each task alone, and all as one mixture**", header, lines)


def _rising(runs: Sequence[Row]) -> str:
    """Say how many runs had a training loss that rose: their scores count all the same."""
    found = Counter(" + ".join(row["tasks"]) for row in runs if row["status"] == "diverged")
    if not found:
        return ""
    of = ", ".join(f"{count} of {tasks}" for tasks, count in sorted(found.items()))
    return f"Runs whose training loss rose at some step, which count all the same (`reason` in the rows): {of}."


def _order(row: Row, names: Sequence[str]) -> tuple[object, ...]:
    """Tasks alone, then mixtures; of one mixture, the pretrained model first, the longest training last."""
    trained = list(row["tasks"])
    return len(trained), [names.index(name) for name in trained], row["model"], not row["weights"], row["steps"]


def _examples(runs: Sequence[Row], name: str) -> str:
    """How many examples the scores are of, which ``--limit`` may have changed between runs."""
    return " or ".join(dict.fromkeys(f"{row['tasks'][name]['examples']:,}" for row in runs if name in row["tasks"]))


if __name__ == "__main__":
    run(main)
