"""A disk that is really full, a small tmpfs; needs the right to mount.

Long: each policy is a launch of up to 200 steps with 40 checkpoints. The short form, a rank that may write no large
file, is in ``test_saver.py``.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import rows
from tests.support.processes import started
from tests.support.small import small_config
from training.checkpoint.resume import read_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.distributed]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_stops_the_run_or_not_as_configured(
    policy: str, disk: Path, corpus: dict[str, Any], tmp_path: Path
):
    config = small_config(
        tmp_path,
        data=corpus,
        parallel={"expert_parallel_size": 2},
        training={
            "steps": 200, "log_every": 1, "eval_examples": 16, "save_every": 5, "output_dir": str(disk),
            "keep_checkpoints": 1, "on_save_error": policy,
        },
    )  # fmt: skip
    filler = disk / "filler"
    with started(config, tmp_path / "log") as run:
        run.wait_for_rows(6)
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        # metrics need some room: it is the checkpoint that must not fit
        filler.open("r+b").truncate(filler.stat().st_size - 150_000)
        if policy == "continue":
            while not any("error" in row for row in rows(run.run_dir)):
                assert run.process.poll() is None, run.log.read_text()[-2000:]
            filler.unlink()
        code = run.process.wait(120)
        text = run.log.read_text()
    errors = [row["error"] for row in rows(config.run_dir) if "error" in row]
    assert errors
    assert "No space left on device" in errors[0]
    checkpoint = read_checkpoint(config.run_dir)
    assert not list((config.run_dir / "checkpoints").glob(".*.partial"))
    if policy == "stop":
        assert code == 5, text[-2000:]
        assert text.count("error: checkpoint ") == 1
    else:
        assert code == 0, text[-2000:]
        assert checkpoint.state.step == 200
