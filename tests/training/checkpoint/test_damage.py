"""Damage of every kind to every kind of file of a checkpoint: refused by name, the one before it is loaded."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.logs import ROOT_LOGGER
from tests.support.checkpoints import write_capture
from tests.support.ranks import run_ranks
from tests.support.small import small_config
from training.checkpoint.agreement import agree_on_checkpoint
from training.checkpoint.resume import find_checkpoint, read_checkpoint
from training.checkpoint.store.manifest import MANIFEST_FILE, DamagedError, check_contents, read_manifest
from training.checkpoint.store.publish import prune, remove_abandoned
from training.config.errors import ConfigError
from training.run.folder import RunFolder

FILES = (
    "rank-00000-of-00001.safetensors", "optimizer-00000.safetensors", "optimizer.safetensors.index.json",
    "index.json", "trainer_state.json", MANIFEST_FILE,
)  # fmt: skip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {"truncate": truncate, "flip": flip, "delete": Path.unlink, "empty": empty}


def write_run(folder: Path) -> tuple[Any, Path]:
    """A run with whole checkpoints of steps 2 and 4."""
    config = small_config(folder)
    for step in (2, 4):
        write_capture(config, step)
    return config, RunFolder(config.run_dir).checkpoints


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(
    damage: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config, folder = write_run(tmp_path)
    assert {path.name for path in (folder / "step_00000004").iterdir()} == set(FILES)
    assert read_checkpoint(config.run_dir).state.step == 4
    DAMAGES[damage](folder / "step_00000004" / file)
    assert read_checkpoint(config.run_dir).state.step == 2
    said = caplog.messages
    assert len(said) == 1
    assert said[0].startswith("checkpoint refused: step_00000004: ")
    # a digit of the manifest itself that is another one speaks of the file whose digest it is
    assert file in said[0] or (damage == "flip" and file == MANIFEST_FILE)
    # what costs nothing to see is seen before anything is started
    if damage != "flip" and file != MANIFEST_FILE:
        assert find_checkpoint(config, 2, 1).state.step == 2
    DAMAGES[damage](folder / "step_00000002" / file)
    with pytest.raises(ConfigError, match=r"holds no intact checkpoint \(step_00000004: [^\n]*step_00000002: "):
        read_checkpoint(config.run_dir)


def test_every_bit_of_a_manifest_matters_or_changes_nothing(tmp_path: Path):
    _, folder = write_run(tmp_path)
    path = folder / "step_00000004" / MANIFEST_FILE
    good = path.read_bytes()
    whole = read_manifest(path.parent)
    for place in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            try:
                records = read_manifest(path.parent)
                check_contents(path.parent, records)
            except DamagedError:
                continue
            assert records == whole, (place, bit)


@pytest.mark.parametrize(
    ("text", "step"),
    [("", 4), ("step_00000006", 4), ("\udcff", 4), (None, 4), ("step_00000002", 2), ("step_00000002\n", 2), ("..", 4)],
)
def test_latest_that_is_stale_empty_or_missing(text: str | None, step: int, tmp_path: Path):
    config, folder = write_run(tmp_path)
    if text is None:
        (folder / "latest").unlink()
    else:
        (folder / "latest").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert find_checkpoint(config, 2, 1).state.step == step


def test_later_checkpoints_than_latest_come_last(tmp_path: Path):
    config, folder = write_run(tmp_path)
    write_capture(config, 6)
    RunFolder(config.run_dir).set_latest(folder / "step_00000004")
    shutil.rmtree(folder / "step_00000004")
    (folder / "step_00000004").mkdir()
    assert read_checkpoint(config.run_dir).state.step == 2
    empty(folder / "step_00000002" / "index.json")
    assert read_checkpoint(config.run_dir).state.step == 6


def _agree(folder: str) -> list[str]:
    """Each damage, as two ranks see it that check a share of the files each."""
    found = []
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(ROOT_LOGGER).addHandler(handler)
    for file in FILES:
        for name, damage in DAMAGES.items():
            place = Path(folder) / f"{file}-{name}"
            place.mkdir(exist_ok=True)
            config = small_config(place)
            said.clear()
            if torch.distributed.get_rank() == 0:
                write_run(place)
                damage(RunFolder(config.run_dir).checkpoints / "step_00000004" / file)
            torch.distributed.barrier()
            checkpoint = agree_on_checkpoint(config.run_dir)
            found.append(f"{checkpoint.state.step} {said[0] if said else ''}")
            if torch.distributed.get_rank() == 0:
                shutil.rmtree(config.run_dir / "checkpoints" / "step_00000002")
            torch.distributed.barrier()
            with pytest.raises(ConfigError, match="holds no intact checkpoint"):
                agree_on_checkpoint(config.run_dir)
    return found


@pytest.mark.distributed
def test_ranks_agree_whoever_sees_the_damage(tmp_path: Path):
    first, second = run_ranks(_agree, 2, tmp_path, str(tmp_path))
    assert first == second
    assert len(first) == len(FILES) * len(DAMAGES)
    assert all(line.startswith("2 checkpoint refused: step_00000004: ") for line in first), first


def test_old_checkpoints_go_and_every_nth_stays(tmp_path: Path):
    config = small_config(tmp_path)
    folders = [write_capture(config, step) for step in range(2, 18, 2)]
    copy = folders[0].with_name("step_00000002-ep1-world1-zero1")
    copy.mkdir()
    assert prune(folders[-2], 3, 8) == ["step_00000006", "step_00000004", "step_00000002"]
    left = sorted(path.name for path in folders[0].parent.iterdir())
    assert left == ["latest", copy.name, *(f"step_{step:08d}" for step in (8, 10, 12, 14, 16))]
    (folders[0].parent / ".step_00000018.partial").mkdir()
    (folders[0].parent / ".step_00000016-ep1-world1-zero1.partial").mkdir()  # of a conversion that may be at work
    assert remove_abandoned(folders[0].parent) == [".step_00000018.partial"]
