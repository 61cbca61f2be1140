"""Mistakes on the command line are one line with a suggestion."""

import pytest

from common.arguments import Parser, natural, positive
from common.paths import path_argument


def parser() -> Parser:
    made = Parser(prog="tool.py")
    made.add_argument("--config", action="once")
    made.add_argument("--local_rank", "--local-rank", type=int)
    made.add_argument("--share", type=float)
    made.add_argument("--gpus", type=positive)
    made.add_argument("--seed", type=natural)
    made.add_argument("--file", type=path_argument)
    made.add_argument("--sbatch", action="append")
    made.add_argument("--resume", action="store_true")
    made.add_argument("overrides", nargs="*")
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--confg", "x"], "error: unrecognized arguments: --confg; did you mean --config?"),
        (["--local_rnk=1"], "error: unrecognized arguments: --local_rnk=1; did you mean --local-rank?"),
        (["-resume"], "error: unrecognized arguments: -resume; did you mean --resume?"),
        (
            ["--training.steps=5"],
            "error: unrecognized arguments: --training.steps=5; write training.steps=5, without dashes",
        ),
        (["--zzz"], "error: unrecognized arguments: --zzz"),
        (["--config", "a", "--config", "b"], "error: --config: given twice: remove one"),
        (["--config=a", "b=c", "--config=a"], "error: --config: given twice: remove one"),
        (["--config"], "error: --config: expected one argument"),
        (["--local-rank=x"], "error: --local-rank x: write a whole number, such as 8"),
        (["--local_rank", ""], "error: --local_rank '': write a whole number, such as 8"),
        (["--share", "0,4"], "error: --share 0,4: write a number, such as 0.5"),
        (["--gpus=0"], "error: --gpus 0: must be at least 1"),
        (["--gpus", "eight"], "error: --gpus eight: write a whole number, such as 8"),
        (["--seed=-1"], "error: --seed -1: must be at least 0"),
        (["--file="], "error: --file '': names nothing: write a path"),
        (
            ["--file", "$NOT_SET/x"],
            "error: --file $NOT_SET/x: the environment variable NOT_SET is not set: export it, or write the path out",
        ),
    ],
)
def test_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        parser().parse_intermixed_args(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{line}; see python tool.py --help\n"


def test_a_config_without_its_option(capsys: pytest.CaptureFixture[str]):
    made = Parser(prog="tool.py")
    made.add_argument("--config", required=True)
    made.add_argument("overrides", nargs="*")
    with pytest.raises(SystemExit):
        made.parse_intermixed_args(["configs/tiny.yaml", "x=1"])
    assert "required: --config; write --config configs/tiny.yaml; see " in capsys.readouterr().err


def test_of_all_ranks_the_first_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parser().parse_args(["--zzz"])
    assert capsys.readouterr().err == ""


def test_what_may_be_repeated():
    made, more = parser(), ["--resume", "--config", "c", "--local_rank=2"]
    for _ in range(2):  # a parser may be used again
        options = made.parse_intermixed_args(["--sbatch=a", "x=1", "--sbatch=b", "--local-rank=1", *more])
        assert (options.sbatch, options.resume, options.config) == (["a", "b"], True, "c")
        assert (options.overrides, options.local_rank) == (["x=1"], 2)


def test_options_of_commands():
    made = Parser(prog="tool.py")
    commands = made.add_subparsers(dest="command")
    for name in ("one", "two"):
        commands.add_parser(name).add_argument("--size", action="once", type=int)
    assert made.parse_args(["two", "--size", "3"]).size == 3
    with pytest.raises(SystemExit):
        made.parse_args(["one", "--size", "3", "--size", "4"])
