"""Options that ``plan.py`` and a dry run share: where figures go, and what of a card is reserved."""

import argparse
import sys
from pathlib import Path
from typing import Any

from common.files import write_atomically
from common.paths import check_can_write_file, path_text_argument
from common.strict_json import to_json
from training.config.errors import ConfigError
from training.planning.cards import Card
from training.planning.display.units import GIB, memory
from training.planning.plan import RESERVED

TERMINAL = "-"


def add_shared_arguments(group: argparse._ActionsContainer) -> None:
    """Add ``--json`` and ``--reserve``; None where they are not given."""
    group.add_argument(
        "--json",
        action="once",
        nargs="?",
        const=TERMINAL,
        type=path_text_argument,
        metavar="FILE",
        help="write every figure as JSON to FILE, or to the terminal in place of the table",
    )
    group.add_argument(
        "--reserve",
        action="once",
        type=float,
        metavar="GIB",
        help="of a card, for what is no tensor: CUDA's context, NCCL's buffers, fragments "
        f"(default: {RESERVED / GIB:g})",
    )


def reserved_bytes(reserve: float | None, card: Card) -> int:
    """Return what is reserved of a card. Raises ConfigError: one line."""
    if reserve is None:
        return RESERVED
    if not 0 <= reserve * GIB < card.memory:
        raise ConfigError(
            f"--reserve {reserve:g}: GiB of {card.name}, 0 or more and less than its {memory(card.memory)}, such as "
            f"{RESERVED / GIB:g}"
        )
    return round(reserve * GIB)


def json_file(json: str | None) -> Path | None:
    """Return the file that ``--json`` names; None if it names none."""
    return None if json is None or json == TERMINAL else Path(json)


def check_json(json: str | None) -> None:
    """Check that the file of ``--json`` can be written. Raises ValueError: one line."""
    file = json_file(json)
    if file is None:
        return
    if "=" in str(json):
        raise ConfigError(f"--json {json}: a file is meant; write overrides before --json")
    check_can_write_file(file, "--json", in_folder=True)


def show(row: dict[str, Any], table: str, json: str | None) -> None:
    """Print the table or the figures, as ``--json`` says, and write its file. Raises OSError."""
    figures = to_json(row, indent=2)
    print(figures if json == TERMINAL else table)
    file = json_file(json)
    if file is not None:
        write_atomically(file, figures + "\n")
        tell(file)


def tell(file: Path) -> None:
    """Say on stderr, beside the table or the figures, that a file is written."""
    print(f"wrote {file}", file=sys.stderr, flush=True)
