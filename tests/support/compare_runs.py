"""Compares two runs that must be equal but for their times: every row of metrics, and the last checkpoint's tensors.

python -m tests.support.compare_runs runs/before runs/after

Prints the first difference and exits with code 1, or says what is equal.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from tests.support.launch import rows
from training.checkpoint.store.manifest import FileRecord, read_manifest
from training.monitoring.columns import MEASURED


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of a run")
    parser.add_argument("after", type=Path, help="folder of the other run")
    return parser.parse_args()


def timeless_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics without times. A checkpoint's row appears when its thread ends, so these come last."""
    kept = [{key: value for key, value in row.items() if not MEASURED.fullmatch(key)} for row in rows(run_dir)]
    return sorted(kept, key=lambda row: row.get("split") == "checkpoint")


def last_tensors(run_dir: Path) -> list[FileRecord]:
    """Name, size and SHA-256 of the files of tensors of the newest checkpoint."""
    checkpoints = run_dir / "checkpoints"
    folder = checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip()
    return [record for record in read_manifest(folder) if record.name.endswith(".safetensors")]


def first_difference(before: Path, after: Path) -> str | None:
    """The first difference of two runs, None if there is none."""
    nothing: dict[str, Any] = {}
    pairs = itertools.zip_longest(timeless_rows(before), timeless_rows(after), fillvalue=nothing)
    for number, (a, b) in enumerate(pairs, start=1):
        for key in dict.fromkeys([*a, *b]):
            # As text: not a number is equal to itself here.
            if repr(a.get(key)) != repr(b.get(key)):
                step = a.get("step", b.get("step"))
                return f"row {number}, step {step}: {key} = {a.get(key)!r} before, {b.get(key)!r} after"
    if last_tensors(before) != last_tensors(after):
        return "all rows are equal, the tensors of the last checkpoint are not"
    return None


def main() -> None:
    """Compare, print, and exit with 1 if the runs differ."""
    arguments = parse_arguments()
    difference = first_difference(arguments.before, arguments.after)
    if difference is not None:
        sys.exit(difference)
    print(f"equal: {len(timeless_rows(arguments.before))} rows and the tensors of the last checkpoint")


if __name__ == "__main__":
    main()
