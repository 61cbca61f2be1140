"""Writes the section of a base configuration into a document: what stands between two comments."""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from common.text import counted
from studies.results.rows import Row
from training.config.errors import ConfigError


class Section:
    """Tables of a study in a document, and the command that writes them.

    Args:
        study: last part of the module's name, such as ``design_space``.
        words: of the command line, which tell this section from others of the document.
    """

    def __init__(self, study: str, words: Sequence[str]):
        self.module, self.words = f"studies.{study}", list(words)
        self.begin, self.end = f"<!-- {study}: {shlex.join(words)} -->", f"<!-- {study} ends -->"

    def show(self, tables: str) -> None:
        """Print what would be written, without what is measured about the runs."""
        print(self.begin, tables, self.end, sep="\n")

    def split(self, document: Path) -> tuple[str, str, str]:
        """Return what stands before the section's content, the content, and what stands behind it.

        Raises:
            ConfigError: the document cannot be read or has no such section.
        """
        try:
            text = document.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--document {document} cannot be read: {error.strerror}") from None
        head, found, tail = text.partition(self.begin)
        old, ended, rest = tail.partition(self.end)
        if not found or not ended:
            raise ConfigError(f"--document {document} has no section for it: add the lines {self.begin} and {self.end}")
        return head, old, rest

    def write(self, arguments: argparse.Namespace, parts: Sequence[str], runs: int) -> None:
        """Write the section's command and its parts.

        Args:
            arguments: with ``document``.
            parts: paragraphs, tables and pictures.
            runs: how many the parts are of.

        Raises:
            ConfigError: see ``split``.
        """
        head, old, rest = self.split(arguments.document)
        command = f"```bash\n{shlex.join(['python', '-m', self.module, *self.words])}\n```"
        body = "\n\n".join([command, *(part for part in parts if part)])
        write_atomically(arguments.document, f"{head}{self.begin}\n\n{body}\n\n{self.end}{rest}")
        lines = len(re.findall(r"^\|", old, re.MULTILINE))
        print(f"{arguments.document}: {runs} runs; the section had {lines} lines of tables")


def picture(path: Path, document: Path, words: str) -> str:
    """Return a picture for a document, named relative to it."""
    return f"![{words}]({os.path.relpath(path.resolve(), document.parent.resolve())})"


def describe_runs(runs: Sequence[Row], configurations: int) -> str:
    """Return what was run, where and by which code: a sentence without its full stop."""
    seeds = sorted({row["seed"] for row in runs})
    steps = sorted({row["steps"] for row in runs})
    where = sorted({f"{row['device']}, {counted(row['ranks'], 'rank')}, {row['jobs']} at a time" for row in runs})
    commits = list(dict.fromkeys((row["git_commit"] or "unknown")[:12] for row in runs))
    dates = sorted(row["date"][:10] for row in runs)
    loads = sorted(row["load_average"] for row in runs)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    length = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    configured, numbers = counted(configurations, "configuration"), ", ".join(map(str, seeds))
    of_seeds, of_commits = "seed" if len(seeds) == 1 else "seeds", "commit" if len(commits) == 1 else "commits"
    return (
        f"{counted(len(runs), 'run')} of {length} steps ({configured}, {of_seeds} {numbers}), "
        f"{days}, on {'; '.join(where)}; load average {loads[0]:g} to {loads[-1]:g} at their ends; torch "
        f"{runs[0].get('versions', {}).get('torch', 'unknown')}; {of_commits} {', '.join(commits)}"
    )
