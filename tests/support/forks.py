"""New processes that have torch, DeepSpeed and the trainer imported when they start.

Importing them takes five seconds of a core, the work of a test often less than one. So each test process has one server
(multiprocessing's ``forkserver``) that imports them once and does nothing else; every new process is a fork of it. The
server has no thread of Python's, no process group and no device, so a fork is as good as a process of its own: memory,
environment, random state, signal handlers, file descriptors and exit code belong to it alone.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common.project import ROOT

ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
# OpenMP's threads spin while they wait for each other: on a busy machine a process of two takes minutes for a step.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PRELOAD = "tests.support.preload"
CONTEXT = multiprocessing.get_context("forkserver")
TIMEOUT_SECONDS = 300.0


def fork(function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None) -> ForkServerProcess:
    """Start ``function(*args)`` in a new process; ``environment`` comes on top of this process's.

    The exit code is that of a script: 0, the code of ``sys.exit``, 1 after an exception, minus the signal that killed.
    """
    # A server that is too old or dead is replaced by multiprocessing itself.
    CONTEXT.set_forkserver_preload([PRELOAD])
    with patch.dict(os.environ, ENVIRONMENT | ONE_THREAD):
        forkserver.ensure_running()
        values = {**os.environ, **(environment or {})}
    process = CONTEXT.Process(target=_enter, args=(values, function, args))
    process.start()
    return process


def script(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> ForkServerProcess:
    """Start ``python *command``, where the first word is a file or ``-m``; ``log.out`` and ``log.err`` get its output.

    Output is appended, so that several processes may share a log.
    """
    return fork(_run_script, command, log, environment=environment)


def outcome(command: list[str], code: int, log: Path) -> subprocess.CompletedProcess[str]:
    """Return what ``subprocess.run`` would of a process that wrote to ``log`` and has ended."""
    out, err = (log.with_suffix(end).read_text(encoding="utf-8", errors="replace") for end in (".out", ".err"))
    return subprocess.CompletedProcess(command, code, out, err)


def stop_server() -> None:
    """End the server, so that what it leaves at its end, as a report of coverage, is there before this process ends."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _enter(environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if PRELOAD not in sys.modules:  # multiprocessing says nothing
        __import__(PRELOAD)
        raise RuntimeError(f"the fork server could not import {PRELOAD}")
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def _run_script(command: list[str], log: Path) -> None:
    os.chdir(ROOT)
    for suffix, descriptor in ((".out", 1), (".err", 2)):
        with log.with_suffix(suffix).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing's children end without
