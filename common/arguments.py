"""Command lines: a mistake is one line with a suggestion and exit code 2."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from common.exit_codes import USER_ERROR


def whole(text: str) -> int:
    """Parse an option that must be a whole number. Raises ArgumentTypeError."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError("write a whole number, such as 8") from None


def natural(text: str) -> int:
    """Parse an option that must be a whole number, 0 or more. Raises ArgumentTypeError."""
    if whole(text) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return whole(text)


def positive(text: str) -> int:
    """Parse an option that must be a whole number, 1 or more. Raises ArgumentTypeError."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return whole(text)


def number(text: str) -> float:
    """Parse an option that must be a number. Raises ArgumentTypeError."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("write a number, such as 0.5") from None


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that suggests what a mistyped option may have been.

    Mistakes begin with option and value as they were typed: ``--gpus eight: write a whole number, such as 8``. An
    option with ``action="once"`` is stored as by default, but refused if it is given twice.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: set[str] = set()
        self.words: list[str] = []
        self.register("action", "once", _StoreOnce)
        self.register("type", int, whole)
        self.register("type", float, number)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as the base class does."""
        self.given = set()
        self.words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line, of all ranks on the first alone, and exit with code 2."""
        found = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if found:
            message = self._explain(found[1].split())
        message = re.sub(r"^argument (?=-)", "", message)
        files = [word for word in self.words if word.endswith((".yaml", ".yml")) and "=" not in word]
        if message.endswith("required: --config") and files:
            message += f"; write --config {files[0]}"
        if os.environ.get("RANK", "") in ("", "0"):
            print(f"error: {message}; see {self._command()} --help", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            names = [name for name in action.option_strings if self._has(name)] or [str(action.metavar or action.dest)]
            raise argparse.ArgumentError(None, f"{names[0]} {arg_string or repr('')}: {error.message}") from None

    def _has(self, option: str) -> bool:
        return any(word.partition("=")[0] == option for word in self.words)

    def _explain(self, words: Sequence[str]) -> str:
        word = words[0]
        name = word.partition("=")[0]
        message = f"unrecognized arguments: {' '.join(words)}"
        if re.fullmatch(r"--?\w+\.[\w.\[\]]+", name):
            value = word.partition("=")[2] or (words[1] if len(words) > 1 else "VALUE")
            return f"{message}; write {name.lstrip('-')}={value}, without dashes"
        options = [option for option in self._option_string_actions if option.startswith("--")]
        spelled = f"--{name.lstrip('-').replace('_', '-')}"
        close = difflib.get_close_matches(spelled, options, n=1)
        return f"{message}; did you mean {close[0]}?" if close else message

    def _command(self) -> str:
        return f"python {self.prog}" if self.prog.endswith(".py") or ".py " in self.prog else self.prog


class _StoreOnce(argparse._StoreAction):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None and isinstance(parser, Parser):
            if self.dest in parser.given:
                raise argparse.ArgumentError(self, "given twice: remove one")
            parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)
