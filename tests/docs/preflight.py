"""Checks a documented command as far as it goes without running it: arguments, files, config, parallel layout.

Training commands are checked for the ranks that they start, with the checks of ``train.py`` itself. The programs of
this project parse their arguments with their own parsers. A form of command that is not known here is a problem.
"""

import contextlib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.docs.commands import ASSIGNMENT, Command
from tests.docs.other_commands import OTHER_COMMANDS
from tests.docs.page import Page
from tests.docs.parsing import PreflightError, require, unknown
from tests.docs.project_commands import check_bash, check_deepspeed, check_pytest, check_python, check_srun, is_program

PLACEHOLDER = re.compile(r"…|\.\.\.|<(?!extra_id_)[^>]*>|(?<![\w/.-])(NAME|RUN|FILE|FOLDER|HOSTFILE|COMMAND)(?![\w.-])")
CHECKS: dict[str, Callable[[Page, list[str]], None]] = {
    "python": check_python,
    "deepspeed": check_deepspeed,
    "bash": check_bash,
    "srun": check_srun,
    "pytest": check_pytest,
    **OTHER_COMMANDS,
}


def find_problems(root: Path, sandbox: Path, commands: Sequence[Command], *, in_order: bool) -> list[str]:
    """What is wrong with the commands of a document.

    Args:
        root: the project.
        sandbox: an empty folder.
        commands: of the document.
        in_order: whether readers run them one after another; otherwise each stands alone.

    Returns:
        A line for each command that would be refused or cannot be checked, with its file and line.
    """
    problems = []
    page = Page(root, sandbox, in_order=in_order, check=_check)
    with contextlib.chdir(sandbox):
        for command in commands:
            try:
                _check_line(page, command)
            except (PreflightError, ValueError, OSError) as problem:
                problems.append(f"{command}: {' '.join(str(problem).split())}")
    return problems


def _check_line(page: Page, command: Command) -> None:
    text = expand_usage(command.text)
    found = PLACEHOLDER.search(text.partition(" #")[0])
    require(found is None, f"cannot be checked: {found and found[0]} is a placeholder; write the command out")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word in ("&&", ";"):
            _check_mention(page, words) if command.inline and _is_mention(words) else _check(page, words)
            words = []
        elif set(word) <= set(";&|<>"):
            raise unknown(word)
        else:
            words.append(word)


def _is_mention(words: list[str]) -> bool:
    """Whether words name a program and do not start it: ``train.py --resume``, ``python -m data.prepare``."""
    return bool(words) and (words[0].endswith((".py", ".sh")) or (words[:2] == ["python", "-m"] and len(words) == 3))


def _check_mention(page: Page, words: list[str]) -> None:
    """The program exists, and knows the words that are named with it."""
    if words[0] == "python":
        return require(is_program(page.root, words[2]), f"{words[2]}: no such program")
    script, *rest = words
    require(Path(script).is_file(), f"{script}: no such file")
    text = Path(script).read_text(encoding="utf-8")
    for word in rest:
        require(f'"{word}"' in text or f" {word})" in text or word == "--help", f"{script} knows no {word}")
    return None


def _check(page: Page, words: list[str]) -> None:
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    while words and words[0] in ("exec", "sudo"):
        words = words[1:]
    if words:
        program = words[0].removeprefix(".venv/bin/")
        if program not in CHECKS:
            raise unknown(program)
        CHECKS[program](page, list(words[1:]))


def expand_usage(text: str) -> str:
    """Usage text with its optional arguments: ``[--backoff SECONDS]`` → ``--backoff 1``; ``[key=value …]`` goes."""

    def expand(match: re.Match[str]) -> str:
        given = match[1].removesuffix(" …")
        return "" if "key=value" in given else re.sub(r"\b[A-Z]+\b", "1", given)

    return re.sub(r"(?<=\s)\[([^\]]*)\]", expand, text)
