"""Writes tables and picture from the rows: beside the runs, or into a section of a document."""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from studies.design_space.pareto import plot_fronts
from studies.design_space.rows import Row, read_rows
from studies.design_space.tables import Results, format_tables, points
from studies.design_space.trials import Trial
from training.config.errors import ConfigError

MODULE = "studies.design_space"
END = "<!-- design_space ends -->"


def show_results(trials: Sequence[Trial], rows: Sequence[Row], out: Path) -> None:
    """Print the tables of what is finished, and write them and the picture into a folder."""
    results = Results(trials, rows)
    if not results.runs:
        return
    tables = format_tables(results)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.md", tables)
    _plot(results, out / "pareto.png")
    print(f"\n{tables}\n{out / 'pareto.png'} plots quality against cost")


def write_section(arguments: argparse.Namespace, trials: Sequence[Trial]) -> int:
    """Write the section of a base configuration into a document, and its picture beside the file of rows.

    The section is what stands between two comments, of which the first names the configuration; ``--dry-run`` prints
    it. Returns the exit code.

    Raises:
        ConfigError: the document cannot be read or has no such section, or the configuration has no rows.
    """
    results = Results(trials, read_rows(arguments.rows))
    words = ["--config", arguments.config, "--steps", str(arguments.steps), *arguments.overrides]
    begin = f"<!-- design_space: {shlex.join(words)} -->"
    if arguments.dry_run:
        print(begin, format_tables(results), END, sep="\n")
        return 0
    try:
        text = arguments.document.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--document {arguments.document} cannot be read: {error.strerror}") from None
    if not results.runs:
        raise ConfigError(
            f"--rows {arguments.rows} has no rows of this configuration: train it, or set --config, --steps"
        )
    head, found, tail = text.partition(begin)
    old, ended, rest = tail.partition(END)
    if not found or not ended:
        raise ConfigError(f"--document {arguments.document} has no section for it: add the lines {begin} and {END}")
    picture = arguments.rows.parent / f"{Path(arguments.config).stem}-{arguments.steps}.png"
    _plot(results, picture)
    body = "\n\n".join(
        [
            f"```bash\n{shlex.join(['python', '-m', MODULE, *words])}\n```",
            _describe(results),
            format_tables(results).rstrip(),
            f"![quality against cost, and the Pareto front]({_relative(picture, arguments.document.parent)})",
        ]
    )
    write_atomically(arguments.document, f"{head}{begin}\n\n{body}\n\n{END}{rest}")
    print(f"{arguments.document}: {len(results.runs)} runs; the section had {_rows_in(old)} lines of tables")
    return 0


def _describe(results: Results) -> str:
    """Say what was run, where and by which code."""
    runs = results.runs
    seeds = sorted({row["seed"] for row in runs})
    first = runs[0]
    where = sorted({f"{row['device']}, {row['ranks']} rank(s), {row['jobs']} at a time" for row in runs})
    commits = list(dict.fromkeys((row["git_commit"] or "unknown")[:12] for row in runs))
    dates = sorted(row["date"][:10] for row in runs)
    loads = sorted(row["load_average"] for row in runs)
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{len(runs)} runs of {first['steps']:,} steps ({len(results.unique)} configurations, seeds "
        f"{', '.join(map(str, seeds))}), {span}, on {'; '.join(where)}; load average {loads[0]:g} to {loads[-1]:g} at "
        f"their ends; torch {first.get('versions', {}).get('torch', 'unknown')}; commits {', '.join(commits)}. "
        "Quality is the negative log perplexity of held-out text after the last step, mean ± standard error over "
        "seeds; *against baseline* is its difference, seed by seed."
    )


def _plot(results: Results, path: Path) -> None:
    panels = points(results)
    if panels:
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_fronts(panels, path)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())


def _rows_in(text: str) -> int:
    return len(re.findall(r"^\|", text, re.MULTILINE))
