"""How programs begin and end, in processes of their own: their streams and environment are what is looked at."""

import os
import subprocess
import sys

import pytest

from common.project import ROOT

MAIN = """
import os, sys
from common.program import run
from common.logs import get_logger
def main():
    {body}
run(main)
"""


def program(body: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    code = MAIN.format(body=body)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=kept | environment, capture_output=True)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_ascii_terminal_gets_ascii(stream: str):
    result = program(f"print('a → b … ±1 ² ü', file=sys.{stream})", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert getattr(result, stream) == b"a -> b ... +-1 ^2 ?\n"
    result = program(f"print('a → ü', file=sys.{stream})", PYTHONIOENCODING="utf-8")
    assert getattr(result, stream).decode() == "a → ü\n"


def test_log_lines_reach_an_ascii_terminal():
    result = program("get_logger('x').info('a → b')", PYTHONIOENCODING="ascii")
    assert (result.stdout, result.stderr) == (b"a -> b\n", b"")


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("return 5", 5, ""),
        ("return None", 0, ""),
        ("open('/no/such/file')", 2, "error: No such file or directory: /no/such/file\n"),
        ("os.mkdir('pyproject.toml/x')", 2, "error: Not a directory: pyproject.toml/x\n"),
        ("raise OSError(28, 'No space left on device', '/full')", 2, "error: No space left on device: /full\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_ends(body: str, code: int, error: str):
    result = program(body)
    assert (result.returncode, result.stderr.decode()) == (code, error)


def test_a_fault_of_the_program_keeps_its_traceback():
    for body in ("raise OSError(5, 'Input/output error')", "1 / 0", "''.encode(None)", "raise BrokenPipeError"):
        result = program(body)
        assert result.returncode == 1
        assert b"Traceback" in result.stderr


def test_threads_wait_passively_unless_the_user_says_otherwise():
    body = "print(os.environ.get('OMP_WAIT_POLICY'))"
    assert program(body).stdout == b"PASSIVE\n"
    assert program(body, OMP_WAIT_POLICY="ACTIVE").stdout == b"ACTIVE\n"
    assert program(body, GOMP_SPINCOUNT="100").stdout == b"None\n"
    assert program(body, KMP_BLOCKTIME="1").stdout == b"None\n"


def test_an_interrupt_of_the_imports_is_quiet():
    start = "from common.exit_codes import end_quietly_on_interrupt; end_quietly_on_interrupt(); "
    for error, code, shown in (("KeyboardInterrupt", 130, False), ("ValueError", 1, True)):
        result = subprocess.run([sys.executable, "-c", f"{start}raise {error}"], cwd=ROOT, capture_output=True)
        assert (result.returncode, b"Traceback" in result.stderr) == (code, shown)


def programs() -> list[str]:
    """Return the files that users start: those in the root, and the modules of packages that have a command line."""
    files = [*ROOT.glob("*.py"), *(f for name in ("data", "studies", "training") for f in (ROOT / name).rglob("*.py"))]
    found = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}
    return sorted(
        name for name, text in found.items() if '\nif __name__ == "__main__"' in text and name not in NOT_FOR_USERS
    )


# Started by this project, or run to write a file of it.
NOT_FOR_USERS = {
    "data/streaming/worker.py", "training/config/deepspeed_keys.py", "training/monitoring/columns.py",
}  # fmt: skip


@pytest.mark.parametrize("file", programs())
def test_programs_prepare_for_an_interrupt_before_their_imports(file: str):
    text = (ROOT / file).read_text(encoding="utf-8")
    first, second = [line for line in text.splitlines() if line.startswith(("import ", "from "))][:2]
    assert first == "from common.exit_codes import end_quietly_on_interrupt"
    assert 0 < text.index("    end_quietly_on_interrupt()") < text.index(f"\n{second}")
    for folder in (ROOT / file).relative_to(ROOT).parents[:-1]:  # ``python -m`` imports the packages first
        package = (ROOT / folder / "__init__.py").read_text(encoding="utf-8").splitlines()
        imports = {line.split()[1] for line in package if line.startswith(("import ", "from "))}
        assert imports <= {"importlib", "typing"}, folder


@pytest.mark.parametrize("file", programs())
def test_users_programs_begin_alike(file: str):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "from common.program import" in text
    assert "argparse.ArgumentParser(" not in text


@pytest.mark.parametrize(
    "command",
    [["train.py"], ["convert.py"], ["-m", "data.prepare"], ["-m", "studies.stability"], ["-m", "studies.z_loss_sweep"]],
)
def test_help_and_mistakes_come_at_once_on_any_terminal(command: list[str]):
    """Imports of torch and the like take seconds on a good day, minutes on a cold file system."""
    look = (
        "import sys, runpy; sys.argv = sys.argv[1:]\ntry: {run}\nfinally: print(*{heavy} & sys.modules.keys(), "
        "file=sys.stderr)"
    )
    run = f"runpy.run_module({command[-1]!r}, run_name='__main__', alter_sys=True)"
    if command[0] != "-m":
        run = f"runpy.run_path({command[0]!r}, run_name='__main__')"
    heavy = "{'torch', 'transformers', 'deepspeed', 'datasets', 'matplotlib', 'tensorboard'}"
    code = look.format(run=run, heavy=heavy)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    for arguments, status in (["--help"], 0), (["--confg", "x"], 2):
        result = subprocess.run(
            [sys.executable, "-c", code, command[-1], *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == status, result.stderr
        *errors, found = result.stderr.splitlines()
        assert found == "", found
        assert len(errors) == (status > 0), errors


def unread() -> int:
    """Return the end of a pipe to which is written, and that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "body", ["print('a')", "print('a' * 100_000)", "get_logger('x').info('a'); get_logger('x').info('b')"]
)
def test_a_reader_that_leaves_changes_no_exit_code(body: str, unbuffered: str):
    code = MAIN.format(body=f"{body}; print('end', file=sys.stderr); return 5")
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipe = unread()
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (5, b"end\n")
    assert subprocess.run(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe).returncode == 5
    os.close(pipe)


def test_a_program_knows_that_nobody_reads():
    code = "import sys; from common.program import begin, is_read; begin(); sys.exit(is_read())"
    pipe = unread()
    command = [sys.executable, "-c", code]
    found = [subprocess.run(command, cwd=ROOT, stdout=out).returncode for out in (pipe, subprocess.DEVNULL, None)]
    os.close(pipe)
    assert found == [0, 1, 1]


def test_streams_that_cannot_be_written():
    """A full disk is told once; a stream that the shell has closed is no mistake."""
    for body, place, code, error in (
        ("print('a')", ">/dev/full", 2, "error: No space left on device: stdout\n"),
        ("get_logger('x').info('a'); return 5", ">/dev/full", 5,
         "warning: lines of the log are lost: No space left on device\n"),
        ("print('a'); get_logger('x').info('a'); return 5", ">&-", 5, ""),
        ("get_logger('x').error('a'); return 5", "2>&-", 5, ""),
    ):  # fmt: skip
        command = ["bash", "-c", f'"$0" -c "$1" {place}', sys.executable, MAIN.format(body=body)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (code, error), body


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_dry_run_that_nobody_reads_ends_at_once(options: list[str]):
    command = [sys.executable, "train.py", "--config", "configs/st_moe_32b.yaml", "--dry-run", "--world-size", "64"]
    pipe = unread()
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}  # names what is imported
    result = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True
    )
    os.close(pipe)
    assert result.returncode == 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert not lines
    assert " torch\n" not in result.stderr
    assert " pydantic\n" in result.stderr
