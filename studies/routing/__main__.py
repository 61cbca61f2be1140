"""Which tokens go to which expert: traces held-out text through a trained model (Zoph et al. 2022, section 7).

python -m studies.routing runs/tiny
python -m studies.routing exported/tiny --config configs/tiny.yaml --data news=news.txt --data law=laws/*.jsonl
python -m studies.routing runs/tiny --against 400
deepspeed --num_gpus 2 --module studies.routing runs/tiny

Writes trace.safetensors, statistics.json, tables.md and routing.html. A folder with a trace, in place of a run, is
analyzed again without the model.
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.arguments import Parser, natural, positive
from common.files import write_atomically
from common.logs import get_logger
from common.paths import check_can_write, path_argument, path_text_argument
from common.program import begin, run
from common.strict_json import finite_or_null, to_json
from studies.routing.trace import FILE, Trace, load_trace, save_trace
from training.config.errors import ConfigError
from training.config.run import load_config
from training.export.held_out import held_out_batches, name_of
from training.export.trained import Found, find_trained, load_trained
from training.run.distributed import initialize_distributed, refuse, shut_down_distributed
from training.run.process import Process

AGAINST_FILE = "trace_against.safetensors"
STATISTICS_FILE, TABLES_FILE, PAGE_FILE = "statistics.json", "tables.md", "routing.html"
OF_COLLECTION = (
    "data",
    "text_column",
    "config",
    "checkpoint",
    "against",
    "examples",
    "batch_size",
    "routing",
    "vocabulary",
)
EXAMPLES = 1024
TIMEOUT_SECONDS = 1800.0  # of a collective: rank 0 reads the experts' weights for their similarity
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAMED = re.compile(rf"({NAME.pattern})=(.+)", re.DOTALL)

Files = str | list[str]

logger = get_logger("routing")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python -m studies.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        type=path_argument,
        help="run folder, such as runs/tiny, one of its checkpoints, an exported folder, or a folder with a trace",
    )
    add = parser.add_argument_group("what is traced").add_argument
    add(
        "--data",
        action="append",
        metavar="[NAME=]FILES",
        type=path_text_argument,
        help="held-out text in the form of data.validation_files; repeated: several domains; default: the run's own",
    )
    add("--text-column", metavar="NAME", help="JSON key or Parquet column of --data (default: data.text_column)")
    add("--config", type=path_text_argument, metavar="FILE", help="of an export: the configuration it was trained with")
    add("--checkpoint", metavar="STEP", help="of the run: a step, best or best:TASK (default: the newest)")
    add(
        "--against",
        metavar="STEP",
        help="another checkpoint of the run, or the folder of a model that began with its weights: how many tokens "
        "keep their expert",
    )
    add("--examples", type=positive, metavar="N", help=f"of all domains together (default: {EXAMPLES})")
    add("--batch-size", type=positive, metavar="N", help="sequences (default: training.micro_batch_size of the run)")
    add(
        "--routing",
        choices=("dropless", "trained"),
        help="of a run: dropless (default): every token is served, so that its experts depend on no other text; "
        "trained: capacity and random choices as in training",
    )
    add("--vocabulary", type=path_argument, metavar="FOLDER", help="of the run's spiece.model, if the run has no copy")
    add = parser.add_argument_group("statistics and page").add_argument
    add("--permutations", type=positive, default=200, metavar="N", help="of each test (default: %(default)s)")
    add("--seed", type=natural, default=0, metavar="N", help="of permutations and resamples (default: %(default)s)")
    add("--shown", type=positive, default=12, metavar="N", help="examples with text on the page (default: %(default)s)")
    add("--out", type=path_argument, metavar="FOLDER", help="for the results (default: routing in the model's folder)")
    # added by the deepspeed launcher and, with a dash, by torch.distributed.launch
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def texts(given: list[str] | None, own: Mapping[str, Files]) -> dict[str, Files]:
    """Return the files of each domain that ``--data`` names.

    Args:
        given: ``NAME=FILES``, ``FILES``, or the name of one of the run's own domains.
        own: files of the run's domains.

    Raises:
        ConfigError: two have the same name, or one is neither a file nor a domain.
    """
    found: dict[str, Files] = {}
    for text in given or []:
        match = None if Path(text).exists() else NAMED.fullmatch(text)
        files: Files
        if text in own:
            name, files = text, own[text]
        else:
            name, files = (match[1], match[2]) if match else (name_of(text), text)
            if match is None and own and NAME.fullmatch(text) and not Path(text).exists():
                raise ConfigError(f"--data {text}: neither a file nor a domain of the run, which has {', '.join(own)}")
        if name in found:
            raise ConfigError(
                f"--data {text}: another text is named {name}: write --data NAME={files}, with another NAME"
            )
        found[name] = files
    return found


def other_model(arguments: argparse.Namespace, found: Found) -> Found | None:
    """Return what ``--against`` names. Raises ConfigError: it is not there, or is the model itself."""
    if arguments.against is None:
        return None
    text: str = arguments.against
    if text.isdecimal():
        run_dir = found.source.run_dir
        if run_dir is None:
            raise ConfigError(f"--against {text}: {found.name} is an export, which has no steps: name a folder")
        other = find_trained(run_dir, int(text), arguments.vocabulary)
    else:
        other = find_trained(path_argument(text), None, arguments.vocabulary)
    if other.source.folder.resolve() == found.source.folder.resolve():
        raise ConfigError(f"--against {text} is the model itself: name another checkpoint")
    if other.tokenizer.fingerprint != found.tokenizer.fingerprint:
        raise ConfigError(f"--against {text} has another vocabulary than {found.name}: name a model with the same one")
    return other


def check_sparse(found: Found) -> None:
    """Raise ConfigError if a model has no sparse layer."""
    if not found.sparse_layers():
        raise ConfigError(f"{found.name} is dense: it has no sparse layer whose routing could be traced")


def collect_all(arguments: argparse.Namespace, process: Process, out: Path) -> tuple[Trace, Trace | None] | None:
    """Trace the models and write the traces; collective over all ranks. Returns None on other ranks than 0.

    Raises:
        ValueError: a mistake in the model's folder, the data or the options.
    """
    found = find_trained(arguments.model, arguments.checkpoint, arguments.vocabulary)
    other = other_model(arguments, found)
    routing: Any = arguments.routing or "dropless"
    for one in (found, other):
        if one is not None:
            check_sparse(one)
            one.check_routing(routing)
    data, size = found.data(None if arguments.config is None else load_config(arguments.config))
    if arguments.text_column is not None:
        data = data.model_copy(update={"text_column": arguments.text_column})
    own = data.validation_files
    check_can_write(out, "--out")
    held_out = held_out_batches(
        data,
        found.tokenizer,
        texts(arguments.data, own if isinstance(own, dict) else {}),
        examples=arguments.examples or EXAMPLES,
        batch_size=arguments.batch_size or size,
    )
    logger.info("%s: importing torch", found.name)
    device = initialize_distributed(process, TIMEOUT_SECONDS)
    from studies.routing.collect import collect, describe

    logger.info("%s: %s", found.name, describe(held_out, process.world_size))
    traces = []
    for one in (found, other):
        if one is not None:
            trained = load_trained(one, routing, process.world_size, device)
            traces.append(collect(one, trained, held_out))
            del trained
    shut_down_distributed()
    trace, against = traces[0], traces[1] if len(traces) > 1 else None
    if trace is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    save_trace(trace, out / FILE)
    (out / AGAINST_FILE).unlink(missing_ok=True)
    if against is not None:
        save_trace(against, out / AGAINST_FILE)
    return trace, against


def read_traces(arguments: argparse.Namespace) -> tuple[Trace, Trace | None]:
    """Read the traces of an earlier call. Raises ValueError: they cannot be read, or an option is of the collection."""
    for name in OF_COLLECTION:
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')}: {arguments.model} holds a trace that was collected already: name the run"
            )
    other = arguments.model / AGAINST_FILE
    return load_trace(arguments.model / FILE), load_trace(other) if other.is_file() else None


def write_results(arguments: argparse.Namespace, trace: Trace, other: Trace | None, out: Path) -> None:
    """Analyze, and write everything but the traces."""
    from studies.routing.analysis import analyze
    from studies.routing.page import to_html
    from studies.routing.tables import entropy_table, information_table, introduction, to_markdown, verdict

    logger.info("analyzing %s", out / FILE)
    found = analyze(trace, other, permutations=arguments.permutations, seed=arguments.seed)
    write_atomically(out / STATISTICS_FILE, to_json(finite_or_null(found), indent=1) + "\n")
    write_atomically(out / TABLES_FILE, to_markdown(found))
    write_atomically(out / PAGE_FILE, to_html(found, trace, arguments.shown))
    logger.info("\n%s\n\n%s\n\n%s\n", introduction(found), entropy_table(found), information_table(found))
    logger.info("%s\n", verdict(found))
    logger.info(f"tables  {out / TABLES_FILE}\nfigures {out / STATISTICS_FILE}\npage    {out / PAGE_FILE}")


def main() -> int:
    """Collect and analyze; return the exit code."""
    process = Process.from_environment()
    begin(process.rank)
    arguments = parse_arguments()
    out: Path = arguments.out or arguments.model / "routing"
    try:
        if (arguments.model / FILE).is_file():
            out = arguments.out or arguments.model
            traces = read_traces(arguments) if process.rank == 0 else None
            if process.rank == 0:
                check_can_write(out, "--out")
                out.mkdir(parents=True, exist_ok=True)
        else:
            traces = collect_all(arguments, process, out)
        if traces is not None:
            write_results(arguments, *traces, out)
    except ValueError as error:
        refuse(str(error), process)
    return 0


if __name__ == "__main__":
    run(main)
