"""Fill the spans of sentences with a run or an exported model.

python fill.py runs/tiny "Paris is the <extra_id_0> of <extra_id_1>."
python fill.py exported/tiny --num-beams 4 "The <extra_id_0> is red." "It was <extra_id_0> in <extra_id_1>."
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import os
import sys

from common.arguments import Parser, positive
from common.exit_codes import USER_ERROR
from common.logs import get_logger
from common.paths import path_argument
from common.program import begin, run
from training.export.folders import check_source, check_step
from training.export.sentences import parse_sentence

logger = get_logger("fill")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_argument, help="run folder, such as runs/tiny, or exported folder")
    parser.add_argument(
        "sentences", nargs="*", metavar="SENTENCE", help="with <extra_id_0>, <extra_id_1>, …; none: lines of stdin"
    )
    parser.add_argument(
        "--checkpoint", metavar="STEP", help="of the run: a step, best or best:TASK (default: the newest)"
    )
    parser.add_argument("--num-beams", type=positive, default=1, metavar="N", help="beams (default: 1, greedy)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N", help="most tokens for a sentence (default: 128)"
    )
    parser.add_argument(
        "--vocabulary", type=path_argument, metavar="FOLDER", help="of the run's spiece.model, if the run has no copy"
    )
    return parser.parse_intermixed_args()


def read_sentences(given: list[str]) -> list[tuple[str, str]]:
    """Return the sentences and their names, for messages: those of the command line, or the lines of stdin.

    Raises:
        ValueError: stdin is not UTF-8, or has no sentence.
    """
    if given:
        return [(f"sentence {number}", text) for number, text in enumerate(given, start=1)]
    try:
        # stdin is None where the user has closed it
        lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines() if sys.stdin is not None else []
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not UTF-8 (byte {error.start}): convert it") from None
    found = [(f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ValueError("no sentence was given, on the command line or by stdin")
    return found


def main() -> None:
    """Check the sentences, load the model, fill."""
    begin()
    arguments = parse_arguments()
    try:
        sentences = read_sentences(arguments.sentences)
        parsed = [parse_sentence(text, name) for name, text in sentences]
        check_source(arguments.run)
        check_step(arguments.run, arguments.checkpoint)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers.utils.logging import disable_progress_bar

        from training.export.fill import load

        disable_progress_bar()
        filler = load(arguments.run, arguments.vocabulary, arguments.checkpoint)
    except ValueError as error:
        logger.error(str(error))
        sys.exit(USER_ERROR)
    results = filler.fill(parsed, arguments.num_beams, arguments.max_new_tokens)
    for (name, _), sentence, spans in zip(sentences, parsed, results, strict=True):
        lines = [sentence.filled(spans), *(f"  <extra_id_{number}>  {span}" for number, span in enumerate(spans))]
        logger.info("\n".join(lines))
        if len(spans) < sentence.spans:
            logger.warning(
                f"{name}: {len(spans)} of {sentence.spans} spans within --max-new-tokens "
                f"{arguments.max_new_tokens}: raise it"
            )


if __name__ == "__main__":
    run(main)
