"""Plan a configuration on a number of GPUs: parameters, FLOPs, memory, traffic, time. Needs no GPU, builds no model.

python plan.py --config configs/st_moe_l.yaml --gpus 8
python plan.py --config configs/st_moe_l.yaml --gpus 64 --card a100-80gb --picture plan.png training.micro_batch_size=8
python plan.py --config configs/st_moe_l.yaml --gpus 8 --json
python plan.py --config configs/st_moe_l.yaml --gpus 64 --search
"""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()

import argparse
import math
import sys
from pathlib import Path
from statistics import median

from common.arguments import Parser, positive
from common.exit_codes import USER_ERROR
from common.logs import get_logger
from common.paths import check_can_write_file, no_folder, path_argument, path_text_argument
from common.program import begin, run
from common.text import either
from training.config.errors import ConfigError
from training.config.run import RunConfig, load_config
from training.planning.cards import CARDS, Card, find_card
from training.planning.display.options import add_shared_arguments, check_json, reserved_bytes, show, tell
from training.planning.display.table import text, verdict
from training.planning.display.units import short
from training.planning.layout import checked_layout
from training.planning.plan import FILE_SYSTEM_GBS, MFU, Assumptions, Plan, make_plan
from training.planning.search.find import Search, search
from training.planning.search.table import nothing_fits
from training.planning.search.table import text as search_text
from training.planning.times import rate_of
from training.run.folder import RunFolder

DEFAULT_CARD = "h100-80gb"
ENDINGS = (".png", ".svg", ".pdf")

logger = get_logger("plan")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; ``key=value`` overrides are positional."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--config", action="once", type=path_text_argument, required=True, help="YAML file of the run")
    add("--gpus", action="once", type=positive, required=True, metavar="N", help="GPUs in all: the number of ranks")
    add(
        "--gpus-per-node",
        action="once",
        type=positive,
        default=8,
        metavar="N",
        help="of a node (default: %(default)s); fewer --gpus are one node",
    )
    add(
        "--card",
        action="once",
        default=DEFAULT_CARD,
        help=f"one of {', '.join(card.name for card in CARDS)} (default: %(default)s)",
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--mfu",
        action="once",
        type=float,
        metavar="X",
        help=f"model FLOPs utilization, 0 to 1, without recomputation (default: {MFU})",
    )
    speed.add_argument(
        "--mfu-from",
        action="once",
        type=path_argument,
        metavar="RUN",
        help="run folder: the median that its steps have measured",
    )
    add(
        "--file-system-gbs",
        action="once",
        type=float,
        default=FILE_SYSTEM_GBS,
        metavar="X",
        help="GB/s that a node writes to the file system of checkpoints (default: %(default)s)",
    )
    add_shared_arguments(parser)
    add(
        "--picture",
        action="once",
        type=path_argument,
        metavar="FILE",
        help=f"draw the memory by part ({', '.join(ENDINGS)})",
    )
    add(
        "--search",
        action="store_true",
        help="list the layouts that fit (ZeRO stage, expert-parallel size, micro-batch, recomputation), best first, "
        "and why the others do not; overrides of these keys are held fixed",
    )
    add("overrides", nargs="*", metavar="key=value", help="overrides, such as training.micro_batch_size=8")
    return parser.parse_intermixed_args()


def check_options(arguments: argparse.Namespace) -> None:
    """Check what argparse does not. Raises ConfigError or ValueError: one line."""
    if arguments.mfu is not None and not 0 < arguments.mfu <= 1:
        raise ConfigError(f"--mfu {arguments.mfu:g}: a share of the peak, more than 0 and at most 1, such as {MFU}")
    if not 0 < arguments.file_system_gbs < float("inf"):
        raise ConfigError(f"--file-system-gbs {arguments.file_system_gbs:g}: GB/s, more than 0")
    check_json(arguments.json)
    if arguments.picture is not None:
        if arguments.picture.suffix not in ENDINGS:
            raise ConfigError(f"--picture {arguments.picture}: must end in {', '.join(ENDINGS)}")
        check_can_write_file(arguments.picture, "--picture", in_folder=True)


def measured_rate(folder: Path, card: Card) -> tuple[float, list[str]]:
    """Return the median MFU that a run has measured, as it would be without recomputation, and warnings.

    Raises:
        ConfigError: no such run, or none that has measured it.
    """
    found, option = RunFolder(folder), f"--mfu-from {folder}"
    if not folder.is_dir():
        raise ConfigError(no_folder(folder, option, "name the folder of a run"))
    if not found.config_file.is_file():
        runs = sorted(path.parent for path in folder.glob(f"*/{found.metrics_file.name}"))
        like = f", such as {runs[0]}" if runs else ""
        raise ConfigError(f"{option} is no run folder, it has no {found.config_file.name}: name one{like}")
    rows = [row for row in found.rows() if is_share(row.get("mfu"))]
    if not rows:
        raise ConfigError(f"{option}: the run has measured no MFU: no row of its {found.metrics_file.name} has one")
    config = load_config(found.config_file)
    peak = median(row.get("peak_tflops") or math.nan for row in rows)
    return rate_of(config, median(row["mfu"] for row in rows)), other_device(option, card, peak, config)


def is_share(value: object) -> bool:
    """Whether a value is a share of the peak that a GPU can reach."""
    return isinstance(value, float) and 0 < value <= 1


def other_device(option: str, card: Card, peak: float, measured: RunConfig) -> list[str]:
    """Return a warning if a run was on another device than the card, which its peak in TFLOP/s tells."""
    precision = measured.training.precision

    def is_of(card: Card) -> bool:
        return math.isclose(peak, card.flops_per_second(precision) / 1e12, rel_tol=0.01)

    if is_of(card) or math.isnan(peak):
        return []
    device = either([known.name for known in CARDS if is_of(known)] or ["another device"])
    return [
        f"{option} was measured on {device}, whose peak in {precision} is {short(peak)} TFLOP/s, and this plan is for "
        f"{card.name} with {short(card.flops_per_second(precision) / 1e12)}: it may reach another share of its peak"
    ]


def inputs_of(arguments: argparse.Namespace) -> tuple[RunConfig, Card, Assumptions]:
    """Check the options, and return what a plan or a search is made of. Raises ConfigError."""
    check_options(arguments)
    card = find_card(arguments.card)
    reserved = reserved_bytes(arguments.reserve, card)
    config = load_config(arguments.config, arguments.overrides)
    rate, source, warnings = (MFU if arguments.mfu is None else arguments.mfu), "assumed", list[str]()
    if arguments.mfu is not None:
        source = "--mfu"
    if arguments.mfu_from is not None:
        rate, warnings = measured_rate(arguments.mfu_from, card)
        source = f"measured by {arguments.mfu_from}"
    return config, card, Assumptions(rate, source, reserved, arguments.file_system_gbs, tuple(warnings))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Check everything, then plan. Raises ConfigError."""
    config, card, assumptions = inputs_of(arguments)
    layout = checked_layout(config, arguments.gpus, arguments.gpus_per_node)
    return make_plan(config, layout, card, assumptions)


def search_of(arguments: argparse.Namespace) -> Search:
    """Check everything, then search. Raises ConfigError."""
    if arguments.picture is not None:
        raise ConfigError("--picture draws one layout, and --search lists many: leave out one of them")
    config, card, assumptions = inputs_of(arguments)
    return search(
        config,
        arguments.gpus,
        card,
        gpus_per_node=arguments.gpus_per_node,
        assumptions=assumptions,
        given=frozenset(word.partition("=")[0] for word in arguments.overrides),
    )


def main() -> int:
    """Plan or search, and print or write what was found."""
    begin()
    arguments = parse_arguments()
    try:
        if arguments.search:
            found = search_of(arguments)
        else:
            plan = plan_of(arguments)
    except ValueError as error:
        logger.error(str(error))
        return USER_ERROR
    if arguments.search:
        show(found.as_row(), search_text(found), arguments.json)
        problem = nothing_fits(found) if not found.fits else None
    else:
        show(plan.as_row(), text(plan), arguments.json)
        if arguments.picture is not None:
            from training.planning.display.picture import write_picture

            name = Path(arguments.config).stem
            write_picture(plan, f"{name} on {plan.layout.gpus} x {plan.card.name}", arguments.picture)
            tell(arguments.picture)
        problem = None if plan.fits else verdict(plan)
    if problem is not None:
        logger.error(problem)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
