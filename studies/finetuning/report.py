"""Writes tables and picture from the rows: beside the runs, or into a section of a document."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.files import write_atomically
from studies.finetuning.pictures import plot_grid
from studies.finetuning.tables import Results, format_tables
from studies.finetuning.trials import Trial
from studies.finetuning.variants import Variant
from studies.results.rows import Row, read_rows
from studies.results.section import Section, describe_runs, picture
from training.config.errors import ConfigError

PICTURE = "score over batch size and learning rate, sparse and dense"


class Page:
    """Tables and picture of a study.

    Args:
        arguments: of the command line, settled.
        runs: the pretrained runs by kind.
        overrides: ``key=value`` arguments, as the user gave them.
        trials: of the study.
        variants: by name.
    """

    def __init__(
        self, arguments: argparse.Namespace, runs: Mapping[str, Path], overrides: Sequence[str],
        trials: Sequence[Trial], variants: Mapping[str, Variant],
    ):  # fmt: skip
        self.arguments, self.trials, self.variants = arguments, trials, variants
        self.section = Section("finetuning", command_words(arguments, runs, overrides))

    def results(self, rows: Iterable[Row]) -> Results:
        """Return what is finished."""
        return Results(self.trials, self.variants, rows)

    def show(self, rows: Iterable[Row]) -> None:
        """Print the tables of what is finished, and write them and the picture beside the runs."""
        results, out = self.results(rows), self.arguments.out
        if not results.runs:
            return
        tables = format_tables(results)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "table.md", tables)
        print(f"\n{tables}")
        if plot_grid(results, out / "batches.png"):
            print(f"{out / 'batches.png'} plots the {PICTURE}")

    def write(self) -> int:
        """Write the section of the document, and its picture beside the rows; ``--dry-run`` prints it.

        Returns:
            The exit code.

        Raises:
            ConfigError: the document cannot be read or has no such section, or there are no rows.
        """
        arguments, results = self.arguments, self.results(read_rows(self.arguments.rows))
        if arguments.dry_run:
            self.section.show(format_tables(results))
            return 0
        if not results.runs:
            raise ConfigError(
                f"--rows {arguments.rows} has no rows of this study: train it, or set --sparse, --config, --steps, …"
            )
        self.section.split(arguments.document)
        file = arguments.rows.parent / f"{Path(arguments.config).stem}-{arguments.steps}.png"
        parts = [f"{describe_runs(results.runs, len(results.unique))}. {self._how()}", format_tables(results).rstrip()]
        if plot_grid(results, file):
            parts.append(picture(file, arguments.document, PICTURE))
        self.section.write(arguments, parts, len(results.runs))
        return 0

    def _how(self) -> str:
        limit = "" if self.arguments.limit is None else f", the first {self.arguments.limit:,} of each task"
        return (
            f"Scores are in percent, of the {self.arguments.split} rows{limit}, after the last step; where there are "
            "several seeds, ± is the standard error over them."
        )


def command_words(arguments: argparse.Namespace, runs: Mapping[str, Path], overrides: Sequence[str]) -> list[str]:
    """Return the options that decide which runs a study has, so that the same words name the same study."""
    words = [word for kind, run in runs.items() for word in (f"--{kind}", str(run))]
    words += ["--tasks", *arguments.tasks] if arguments.tasks else []
    words += ["--config", arguments.config, "--steps", str(arguments.steps)]
    for option in ("batch_sizes", "learning_rates"):
        values = getattr(arguments, option)
        words += [f"--{option.replace('_', '-')}", *(f"{value:g}" for value in values)] if values else []
    for option, default in (("same", "examples"), ("split", "validation"), ("limit", None), ("answers", "generated")):
        value = getattr(arguments, option)
        words += [f"--{option}", str(value)] if value != default else []
    return [*overrides, *words]
