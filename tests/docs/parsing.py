"""Lets the programs of this project parse a command line, and go no further."""

import argparse
import contextlib
import inspect
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock


class PreflightError(Exception):
    """Why a command would be refused, or cannot be checked."""


class _Parsed(BaseException):
    """Arguments are parsed: go no further."""


def require(condition: object, message: str) -> None:
    """Raise PreflightError unless the condition holds."""
    if not condition:
        raise PreflightError(message)


def unknown(what: str) -> PreflightError:
    """The error for a form of command that is not known here."""
    return PreflightError(f"cannot be checked: {what}; teach tests/docs")


@contextlib.contextmanager
def called_as(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Within it the command line is this one, on a machine without GPUs; a program that ends with an error raises."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            mock.patch.object(sys, "argv", [program, *arguments]),
            mock.patch("torch.cuda.device_count", return_value=0),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield
    except SystemExit as end:
        if end.code:
            words = err.getvalue().strip().splitlines() or [str(end.code)]
            raise PreflightError(words[-1]) from None


@contextlib.contextmanager
def _stopped_after_parsing() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, name)

            def parse(self: Any, *args: Any, _original: Any = original) -> Any:
                raise _Parsed(_original(self, *args))

            stack.enter_context(mock.patch.object(argparse.ArgumentParser, name, parse))
        yield


def parse(program: Any, name: str, arguments: Sequence[str]) -> Any:
    """Parse arguments with a program's own parser.

    Args:
        program: its module, with ``parse_arguments``, a ``main`` that parses first, or neither: one argument.
        name: of the program.
        arguments: after the name.

    Returns:
        The program's namespace; None after ``--help``, or without a parser.

    Raises:
        PreflightError: the program refuses the arguments.
    """
    options = None
    with called_as(name, arguments):
        if hasattr(program, "parse_arguments"):
            takes_arguments = bool(inspect.signature(program.parse_arguments).parameters)
            options = program.parse_arguments(*([list(arguments)] if takes_arguments else []))
        elif hasattr(program, "main"):
            try:
                with _stopped_after_parsing():
                    program.main()
            except _Parsed as parsed:
                options = parsed.args[0]
            else:
                raise unknown(f"{name} parses no arguments")
        else:
            require(len(arguments) == 1, f"{name} takes one argument")
    return options
