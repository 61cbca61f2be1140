"""Evaluate a run or an exported model on tasks: generated answers, likeliest choices, metrics, a table.

python evaluate.py runs/finetuned --tasks superglue,xsum
python evaluate.py exported/finetuned --tasks sst2 wiki_topic --split test --beams 4
deepspeed --num_gpus 8 evaluate.py runs/finetuned --tasks closed_book
python evaluate.py runs/tiny --tasks validation
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import os
from pathlib import Path

from common.arguments import Parser, positive
from common.logs import get_logger
from common.paths import check_can_write, path_argument
from common.program import begin, run
from data.streaming.loader import Batch
from data.tasks.sources.base import DEFAULT_FOLDER
from training.config.errors import ConfigError
from training.export.trained import Found, find_trained, load_trained
from training.run.distributed import initialize_distributed, refuse, shut_down_distributed
from training.run.process import Process
from training.tasks.batches import BATCH_SIZE
from training.tasks.held_out import cross_entropy, folder_of, held_out_batches
from training.tasks.lengths import lengths_of
from training.tasks.of_run import own_tasks
from training.tasks.questions import CROSS_ENTROPY, Asked, ask, task_names

TIMEOUT_SECONDS = 7200.0  # of a collective: rank 0 computes metrics while others wait

logger = get_logger("evaluate")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "model",
        type=path_argument,
        help="run folder, such as runs/tiny, one of its checkpoints, or exported folder",
    )
    add = parser.add_argument_group("what is asked").add_argument
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="tasks or groups of python -m data.tasks --list, or names of the run's own data.task_files, also with "
        "commas between; validation: the cross-entropy of the run's held-out text",
    )
    add("--split", default="validation", help="of all tasks (default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="most examples of each task, the first ones (default: all)")
    add(
        "--draw",
        type=int,
        metavar="SEED",
        help="with --limit: the examples that a run with this data.seed draws for training.eval_answers, not the first",
    )
    add(
        "--task-folder",
        type=path_argument,
        metavar="FOLDER",
        help=f"of prepared tasks (default: that of the run, or {DEFAULT_FOLDER})",
    )
    add("--checkpoint", metavar="STEP", help="of the run: a step, best or best:TASK (default: the newest)")
    add("--vocabulary", type=path_argument, metavar="FOLDER", help="of the run's spiece.model, if the run has no copy")
    add = parser.add_argument_group("how it is answered").add_argument
    add(
        "--answers",
        choices=("both", "generated", "likeliest"),
        default="both",
        help="of tasks with choices: generated text, the choice of the largest log probability, or both (default)",
    )
    add("--beams", type=positive, default=1, metavar="N", help="of beam search (default: 1, greedy)")
    add(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="a beam's log probability is divided by its length to this power (default: %(default)s)",
    )
    add(
        "--max-length",
        type=positive,
        metavar="N",
        help="most tokens of an answer, EOS included (default: the targets' length of training)",
    )
    add(
        "--inputs-length",
        type=positive,
        metavar="N",
        help="most tokens of the inputs, EOS included; longer ones are cut (default: that of training)",
    )
    add(
        "--sentinels",
        action=argparse.BooleanOptionalAction,
        help="<extra_id_0> after the inputs and before the answer (default: data.sentinels of a fine-tuned run)",
    )
    add("--batch-size", type=positive, metavar="N", help=f"examples of a batch on each rank (default: {BATCH_SIZE})")
    add("--no-cache", action="store_true", help="compute all positions again for each token: the same text, slower")
    add(
        "--routing",
        choices=("dropless", "trained"),
        help="of a run: dropless (default): every token is served, so that an answer depends on no other text; "
        "trained: eval_capacity_factor and random choices as in training",
    )
    parser.add_argument("--out", type=path_argument, metavar="FOLDER", help="for the results (default: in the model's)")
    # added by the deepspeed launcher and, with a dash, by torch.distributed.launch
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def questions(arguments: argparse.Namespace, found: Found) -> tuple[list[Asked], bool]:
    """Read the rows of all tasks, those of the run's own files included; return them, and whether the held-out text is
    asked for, too.

    Raises:
        ValueError: no such task or split, rows that cannot be had, or without answers to compare with.
    """
    own = {} if found.config is None else own_tasks(found.config.data)
    names = task_names(arguments.tasks, own)
    asked = [
        ask(own.get(name, name), arguments.split, arguments.limit, arguments.task_folder, seed=arguments.draw)
        for name in names
        if name != CROSS_ENTROPY
    ]
    if arguments.answers == "likeliest":
        for one in asked:
            if not one.has_choices:
                raise ConfigError(f"--answers likeliest: task {one.task.name} has no choices: leave it out of --tasks")
    return asked, CROSS_ENTROPY in names


def evaluate(arguments: argparse.Namespace, process: Process) -> None:
    """Check everything that can be checked, then evaluate; collective over all ranks.

    Raises:
        ValueError: a mistake in the model's folder, the tasks or the options.
    """
    found = find_trained(arguments.model, arguments.checkpoint, arguments.vocabulary)
    found.check_routing(arguments.routing or "dropless")
    sentinels = arguments.sentinels
    if sentinels is None:
        sentinels = found.config is not None and found.config.data.sentinels
    lengths = lengths_of(found, arguments.inputs_length, arguments.max_length, sentinels=sentinels)
    if arguments.task_folder is None and found.config is not None:
        arguments.task_folder = path_argument(found.config.data.task_folder)
    asked, of_text = questions(arguments, found)
    out: Path = arguments.out or folder_of(found)
    check_can_write(out, "--out")
    batches: list[Batch] = []
    domains: list[str] = []
    if of_text:
        batches, domains = held_out_batches(
            found, process.rank, process.world_size, batch_size=arguments.batch_size, limit=arguments.limit
        )
    logger.info("%s: importing torch", found.name)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    device = initialize_distributed(process, TIMEOUT_SECONDS)
    from training.tasks.answers import Decoding
    from training.tasks.evaluation import Options, evaluate_tasks, write_results
    from training.tasks.tables import text

    trained = load_trained(found, arguments.routing or "dropless", process.world_size, device)
    decoding = Decoding(
        max_length=lengths.answers,
        beams=arguments.beams,
        batch_size=arguments.batch_size or BATCH_SIZE,
        use_cache=not arguments.no_cache,
        length_penalty=arguments.length_penalty,
        sentinels=sentinels,
    )
    options = Options(decoding, arguments.answers, lengths.inputs, arguments.task_folder, out)
    results = evaluate_tasks(found, trained, asked, options)
    nats = cross_entropy(found, trained, batches, domains, process.rank) if batches else {}
    if process.rank == 0:
        complete = write_results(found, trained, results, nats, options)
        if complete:
            logger.info("\n%s\n", text(complete))
        for name, value in nats.items():
            logger.info(f"{name}: {value:.4f} nats per target token")
        logger.info(f"results {out}")
    shut_down_distributed()


def main() -> None:
    """Evaluate, and log the table."""
    process = Process.from_environment()
    begin(process.rank)
    arguments = parse_arguments()
    try:
        evaluate(arguments, process)
    except ValueError as error:
        refuse(str(error), process)


if __name__ == "__main__":
    run(main)
