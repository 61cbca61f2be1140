"""Writing beside the training: what is written is what was, errors are everybody's, the one before stays whole."""

import resource
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.checkpoint.capture import Moment
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.saver import Saver
from training.checkpoint.store.index import TensorReader
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.engine.build import build_engine
from training.engine.step import update
from training.run.folder import RunFolder


def _train(engine: Any, steps: range) -> None:
    for step in steps:
        rank, world = dist.get_rank(), dist.get_world_size()
        batches = [{k: v[i : i + 4] for k, v in global_batch(step, 8).items()} for i in range(4 * rank, 8, 4 * world)]
        update(engine, batches, 0, 0, step, rank)


def _moment(step: int) -> Moment:
    rank = str(dist.get_rank())
    data = {"identity": {}, "next_example": step, "streams": {rank: step}}
    return Moment(step, step, data, guard={}, evaluated=None, metrics_bytes=0, code={})


def _tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(config.run_dir)
    reader = TensorReader(checkpoint.folder)
    return {name: reader.read(name, "weight", 0, e.numel) for name, e in reader.index.parameters.items()}


def _save_while_training(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for background in (False, True):
        config = small_config(
            Path(folder),
            parallel={"expert_parallel_size": 2},
            training={"name": str(background), "save_in_background": background, "keep_checkpoints": 2},
        )
        engine = build_engine(config, 2, "cpu")
        saver = Saver(config, "cpu")
        for step in (1, 2, 3):
            _train(engine, range(step, step + 1))
            saver.start(engine, _moment(step))
            if background:
                _train(engine, range(100, 102))  # changes every weight that is being written
            saved = saver.wait()
            assert saved is not None
            assert saved.error is None
            assert 0 < saved.stall_seconds <= saved.seconds
            if background:
                break
        dist.barrier()
        names = sorted(path.name for path in RunFolder(config.run_dir).checkpoints.iterdir())
        found[str(background)] = names
    # a run that waited, after the same step as the one that did not
    config = small_config(Path(folder), parallel={"expert_parallel_size": 2}, training={"name": "alike"})
    engine = build_engine(config, 2, "cpu")
    _train(engine, range(1, 2))
    saver = Saver(config, "cpu")
    saver.start(engine, _moment(1))
    saver.wait()
    dist.barrier()
    expected, written = _tensors(config), _tensors(small_config(Path(folder), training={"name": "True"}))
    found["equal"] = all(torch.equal(expected[name], written[name]) for name in expected)
    return found


def _fill_disk(folder: str) -> dict[str, Any]:
    """Rank 1 may write no file of more than 20 kB while the second checkpoint is made: a full disk, to a writer."""
    config = small_config(Path(folder), parallel={"expert_parallel_size": 2}, training={"name": "full"})
    engine = build_engine(config, 2, "cpu")
    saver = Saver(config, "cpu")
    errors, kept = [], []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step, full in ((1, False), (2, True), (3, False)):
        _train(engine, range(step, step + 1))
        if full and dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        saver.start(engine, _moment(step))
        saved = saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert saved is not None
        errors.append(saved.error)
        dist.barrier()
        kept.append(read_checkpoint(config.run_dir).state.step)
    names = sorted(path.name for path in RunFolder(config.run_dir).checkpoints.iterdir())
    return {"errors": errors, "kept": kept, "names": names}


def _both(folder: str) -> dict[str, Any]:
    return {"background": _save_while_training(folder), "full": _fill_disk(folder)}


@pytest.mark.distributed
def test_what_is_written_is_what_was_and_a_full_disk_is_everybodys(tmp_path: Path):
    first, second = run_ranks(_both, 2, tmp_path, str(tmp_path))
    assert first == second
    found = first["background"]
    assert found["False"] == ["latest", "step_00000002", "step_00000003"]
    assert found["True"] == ["latest", "step_00000001"]
    assert found["equal"]

    full = first["full"]
    assert full["errors"][0] is full["errors"][2] is None
    assert full["errors"][1].startswith("rank 1: OSError: [Errno 27] File too large")
    assert full["kept"] == [1, 1, 3]
    assert full["names"] == ["latest", "step_00000001", "step_00000003"]


def test_what_is_kept_must_make_sense(tmp_path: Path):
    values = small_config(tmp_path).model_dump()
    for section, changes, words in (
        ("training", {"keep_every": 10}, "training.keep_every = 10 without training.keep_checkpoints"),
        ("guard", {"spike_threshold": 6.0}, "training.keep_checkpoints = 1 with guard.spike_threshold = 6.0"),
    ):
        changed = values | {"training": values["training"] | ({"keep_checkpoints": 1} if section == "guard" else {})}
        with pytest.raises(ConfigError, match=words):
            validate(changed | {section: changed[section] | changes})
