"""Says what runs achieved, and draws them side by side on one HTML page that needs no server and no network.

python -m training.report runs/tiny                                # and runs/tiny/report.html
python -m training.report runs/tiny runs/tiny-dense --html compare.html
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import sys
from pathlib import Path

from common.arguments import Parser
from common.exit_codes import USER_ERROR
from common.paths import PLACE_ERRORS, path_argument, why
from common.program import run
from training.report.history import History, NoRunError, read_history
from training.report.page import check_target, write_page
from training.report.text import describe


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    name = "python -m training.report"
    parser = Parser(prog=name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_argument, nargs="+", help="run folder, such as runs/tiny")
    parser.add_argument(
        "--html",
        action="once",
        type=path_argument,
        metavar="FILE",
        help="the page; default: report.html in the run, of several runs in the folder above the first",
    )
    return parser.parse_args()


def describe_run(history: History) -> str:
    """Return what is known of a run: of an unfinished one, how far it has come."""
    try:
        return describe(history.path)
    except ValueError as error:
        if not history.is_unfinished:
            return f"{history.path}: {error}"
        return f"{history.path} has not finished: step {history.last_step:,} of {history.planned_steps}"


def main() -> int:
    """Print the text and write the page; return the exit code."""
    arguments = parse_arguments()
    runs: list[Path] = list(dict.fromkeys(arguments.run))
    beside = runs[0] if len(runs) == 1 else runs[0].parent
    target: Path = arguments.html or beside / "report.html"
    try:
        histories = [read_history(run) for run in runs]
        check_target(target)
        for history in histories:
            print(describe_run(history))
        write_page(histories, target)
    except NoRunError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        print(f"error: --html {target}: {why(error)}: name another file", file=sys.stderr)
        return USER_ERROR
    print(f"\nPictures: {target}  (open it in a browser)")
    return 0


if __name__ == "__main__":
    run(main)
