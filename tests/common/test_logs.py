"""What a run's log shows, on which stream and of which ranks."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tqdm import tqdm

from common.logs import ALL_RANKS, NOTICE, ROOT_LOGGER, configure_logging, get_logger, hold_notices
from common.project import ROOT


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    logger = logging.getLogger(ROOT_LOGGER)
    before = logger.level, logger.propagate, logger.handlers
    yield
    logger.level, logger.propagate, logger.handlers = before
    logger.setLevel(before[0])  # also forgets what children have cached


def _log_everything() -> None:
    logger = get_logger("training.trainer")
    logger.debug("hidden")
    logger.info("step 1 of %d", 2)
    logger.warning("disk is full")
    logger.error("no such file")
    logger.error("dead", extra=ALL_RANKS)


def test_notices_are_shown_only_if_no_error_follows(capsys: pytest.CaptureFixture[str]):
    configure_logging(0)
    logger = get_logger("data")
    with hold_notices():
        logger.warning("noted", extra=NOTICE)
        logger.warning("at once")
        assert capsys.readouterr().err == "warning: at once\n"
    assert capsys.readouterr().err == "warning: noted\n"
    with suppress(ValueError), hold_notices():
        logger.warning("noted", extra=NOTICE)
        raise ValueError
    logger.warning("later", extra=NOTICE)
    assert capsys.readouterr().err == "warning: later\n"


def test_rank_0_shows_lines_on_stdout_and_mistakes_on_stderr(capsys: pytest.CaptureFixture[str]):
    configure_logging(0)
    configure_logging(0)  # no line twice
    _log_everything()
    shown = capsys.readouterr()
    assert shown.out == "step 1 of 2\n"
    assert shown.err == "warning: disk is full\nerror: no such file\nerror: dead\n"


def test_other_ranks_show_only_what_is_for_all_ranks(capsys: pytest.CaptureFixture[str]):
    configure_logging(3)
    _log_everything()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: rank 3: dead\n"


def test_the_rank_is_the_environment_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "1")
    configure_logging()
    _log_everything()
    monkeypatch.delenv("RANK")
    configure_logging()
    get_logger("data").info("alone")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("alone\n", "error: rank 1: dead\n")


def test_handlers_of_the_root_logger_do_not_repeat_lines(capsys: pytest.CaptureFixture[str]):
    configure_logging(0)
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        get_logger("train").warning("once")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "warning: once\n"


def test_lines_appear_above_a_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging(0)
    with tqdm(total=9, file=terminal, ncols=40, mininterval=0):
        before = len(terminal.getvalue())
        get_logger("train").warning("above")
        written = terminal.getvalue()[before:]
    cleared, _, again = written.partition("warning: above\n")
    assert cleared.strip("\r ") == ""  # the bar was removed, the line written, and the bar drawn again
    assert cleared.endswith("\r")
    assert "0/9" in again


def test_logging_imports_no_progress_bar():
    """``tqdm`` is looked up, not imported: lines appear before anything heavy is loaded."""
    code = "import sys; from common.logs import *; configure_logging(); get_logger('x').info('y'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    line, modules = found.stdout.splitlines()
    assert line == "y"
    assert "common.logs" in modules.split()
    assert "tqdm" not in modules.split()
