"""Finds the commands that the documents give: Markdown, the headers of scripts and configs, module docstrings."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

#: First words of inline code that is a command; a script (``*.py``, ``*.sh``) followed by arguments is one too.
PROGRAMS = frozenset({
    ".", ".venv/bin/tensorboard", "apt-get", "bash", "codespell", "cp", "curl", "deepspeed", "docker", "exec", "export",
    "git", "hadolint", "kill", "mkdir", "mpirun", "mypy", "nice", "pip", "pre-commit", "pytest", "python", "python3",
    "rm", "ruff", "sbatch", "sh", "shellcheck", "source", "srun", "ssh", "sudo", "tensorboard", "torchrun", "touch",
    "wget",
})  # fmt: skip
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
CODE_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
FENCE = re.compile(r"^[ \t]*```(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    """A command, its lines joined, and where it is."""

    file: str
    line: int
    text: str
    inline: bool = False  # within a sentence, which may name a program without the arguments that it needs

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.text}`"


def looks_like_command(code: str) -> bool:
    """Whether inline code is a command and not a value, a formula or a name, that of a program alone included."""
    words = code.split()
    while words and ASSIGNMENT.match(words[0]) and words[0].partition("=")[0].isupper():
        words = words[1:]
    return len(words) > 1 and (words[0] in PROGRAMS or words[0].endswith((".py", ".sh")))


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def script_commands(file: str, text: str, first_line: int = 1) -> Iterator[Command]:
    """Commands of a shell block, one per logical line; comments and blank lines are none."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), start=first_line):
        start = start if joined else number
        joined = f"{joined} {line.strip()}".strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip()
            continue
        if joined and not joined.startswith("#"):
            yield Command(file, start, joined)
        joined = ""


def inline_commands(file: str, text: str, first_line: int = 1) -> Iterator[Command]:
    """Commands in backticks."""
    for span in CODE_SPAN.finditer(text):
        code = " ".join(span[2].split())
        if looks_like_command(code):
            yield Command(file, first_line + _line(text, span.start()) - 1, code, inline=True)


def without_fences(text: str) -> str:
    """The text with its fenced blocks emptied; line numbers stay."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def markdown_commands(file: str, text: str) -> Iterator[Command]:
    """Commands of code blocks, fenced or indented, and inline code, in the order of the page."""
    prose = without_fences(text)
    found = list(inline_commands(file, prose))
    for block in FENCE.finditer(text):
        if block[1] in ("bash", "sh", "shell", "console"):
            found += script_commands(file, block[2], _line(text, block.start(2)))
        elif not block[1]:
            found += _those_that_look_so(script_commands(file, block[2], _line(text, block.start(2))))
    indented = "\n".join(line if line.startswith(("    ", "\t")) else "" for line in prose.splitlines())
    found += _those_that_look_so(script_commands(file, indented))
    return iter(sorted(found, key=lambda command: command.line))


def _those_that_look_so(commands: Iterable[Command]) -> Iterator[Command]:
    for command in commands:
        if looks_like_command(command.text) and "`" not in command.text.partition("#")[0]:
            yield command


def _plain_or_inline(file: str, text: str, first_line: int) -> Iterator[Command]:
    """Commands on lines of their own, as usage texts have them, and in backticks."""
    yield from _those_that_look_so(script_commands(file, text, first_line))
    yield from inline_commands(file, text, first_line)


def comment_commands(file: str, text: str) -> Iterator[Command]:
    """Commands in the comments of a script or config."""
    lines = [line.lstrip() for line in text.splitlines()]
    directives = ("#!", "# shellcheck ", "# hadolint ")
    comments = "\n".join(line[1:] if line.startswith("#") and not line.startswith(directives) else "" for line in lines)
    return _plain_or_inline(file, comments, 1)


def docstring_commands(file: str, text: str) -> Iterator[Command]:
    """Commands in a module's docstring."""
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree, clean=False)
    return iter(()) if docstring is None else _plain_or_inline(file, docstring, tree.body[0].lineno)


def workflow_commands(file: str, text: str) -> Iterator[Command]:
    """What a workflow runs, and the commands in its comments."""
    yield from comment_commands(file, text)
    for match in re.finditer(r"^\s*(?:- )?(?:run|entry): *(?!\|)(.+)$", text, re.MULTILINE):
        yield Command(file, _line(text, match.start(1)), match[1])


def find_commands(root: Path, path: Path) -> list[Command]:
    """All commands that a file documents, by its kind."""
    text, name = path.read_text(encoding="utf-8"), str(path.relative_to(root))
    finders = {".md": markdown_commands, ".py": docstring_commands, ".yml": workflow_commands}
    if path.name == ".pre-commit-config.yaml":
        return list(workflow_commands(name, text))
    return list(finders.get(path.suffix, comment_commands)(name, text))


def documents(root: Path) -> list[Path]:
    """The files whose commands users read."""
    patterns = (
        "*.md", "docs/**/*.md", "benchmarks/*.md", "tests/*.md", "launch/*.sh", "configs/*.yaml", "Dockerfile",
        ".github/workflows/*.yml", ".pre-commit-config.yaml", "*.py", "tests/*.py", "tests/support/compare_runs.py",
        *(f"{room}/**/*.py" for room in ("data", "model", "optim", "parallel", "training", "studies", "benchmarks")),
    )  # fmt: skip
    return sorted({path for pattern in patterns for path in root.glob(pattern)})
