"""Writes tables and picture from the rows: beside the runs, or into a section of a document."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from studies.design_space.pareto import plot_fronts
from studies.design_space.tables import Results, format_tables, points
from studies.design_space.trials import Trial
from studies.results.rows import Row, read_rows
from studies.results.section import Section, describe_runs, picture
from training.config.errors import ConfigError

QUALITY = (
    "Quality is the negative log perplexity of held-out text after the last step, mean ± standard error over seeds; "
    "*against baseline* is its difference, seed by seed."
)


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
    section = Section("design_space", words)
    if arguments.dry_run:
        section.show(format_tables(results))
        return 0
    if not results.runs:
        raise ConfigError(
            f"--rows {arguments.rows} has no rows of this configuration: train it, or set --config, --steps"
        )
    section.split(arguments.document)
    fronts = arguments.rows.parent / f"{Path(arguments.config).stem}-{arguments.steps}.png"
    _plot(results, fronts)
    parts = [
        f"{describe_runs(results.runs, len(results.unique))}. {QUALITY}",
        format_tables(results).rstrip(),
        picture(fronts, arguments.document, "quality against cost, and the Pareto front"),
    ]
    section.write(arguments, parts, len(results.runs))
    return 0


def _plot(results: Results, path: Path) -> None:
    panels = points(results)
    if panels:
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_fronts(panels, path)
