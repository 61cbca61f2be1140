"""One run at a time in a folder."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.project import ROOT
from training.config.errors import ConfigError
from training.run.folder import RunFolder
from training.run.lock import begin_run, enter_run, lock_run

HOLD = "import sys, time, pathlib, training.run.lock as r; lock = r.lock_run(pathlib.Path(sys.argv[1]), 1); print(1); "


def test_a_second_run_waits_for_the_first_and_then_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logged: list[str] = []
    monkeypatch.setattr("training.run.lock.logger.info", lambda text, *values: logged.append(text % values))
    command = [sys.executable, "-u", "-c", HOLD + "time.sleep(60)", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(ConfigError, match=rf"process {first.pid} of .* still writes to {tmp_path}: end it"):
            enter_run(tmp_path, 0, 0.3)
        assert len(logged) == 1
        assert logged[0].startswith(f"waiting for process {first.pid} of ")
        first.kill()
        first.wait()
        lock = enter_run(tmp_path, 0, 5.0)
        assert lock is not None
        # this process started the other "rank" itself, as a launcher does: no waiting
        began = time.monotonic()
        assert enter_run(tmp_path, 1, 120.0) is None
        assert time.monotonic() - began < 60.0
        lock.close()
        lock_run(tmp_path, 0.1).close()


def test_a_new_run_looks_again_while_it_waits_and_under_the_lock(tmp_path: Path):
    run_dir = tmp_path / "runs" / "a"
    first = begin_run(run_dir, 0.1)
    with pytest.raises(ConfigError, match=r"process .* still writes to"):
        begin_run(run_dir, 0.1)
    RunFolder(run_dir).config_file.write_text("begun")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"a already holds a run, to which process .* writes: wait for its end and"):
        begin_run(run_dir, 60.0)
    assert time.monotonic() - began < 30.0
    first.close()
    with pytest.raises(ConfigError, match="holds a run that has no checkpoint yet; add --restart to begin it again"):
        begin_run(run_dir, 60.0)
    RunFolder(run_dir).checkpoint(4).mkdir(parents=True)
    with pytest.raises(ConfigError, match="already holds a run; add --resume to continue it, or set another"):
        begin_run(run_dir, 60.0)
