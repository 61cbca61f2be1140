"""Adafactor's state in files: complete and bit for bit the same, at any layout of saving and loading."""

import json
import shutil
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from torch import Tensor

from tests.support.optimizer import whole_state
from tests.support.ranks import run_ranks
from tests.training.test_adafactor_ranks import ADAFACTOR, micro_batches, small
from training.checkpoint.gathering import gather_on_rank_0
from training.checkpoint.optimizer_state.adafactor import INDEX_FILE, AdafactorState, SavedState
from training.checkpoint.store.tensor_file import write_tensors
from training.engine.build import build_engine
from training.engine.step import update

FORMAT = AdafactorState("adafactor")
LAYOUTS = [(1, 1), (2, 2), (3, 2), (3, 1), (0, 2)]


def engine_at(folder: Path, stage: int, size: int) -> Any:
    return build_engine(
        small(str(folder), {"stage": stage}, size, optimizer=ADAFACTOR | {"beta1": 0.5}), dist.get_world_size(), "cpu"
    )


def train_and_save(folder: Path) -> None:
    engine = engine_at(folder, 1, min(2, dist.get_world_size()))
    for step in range(3):
        update(engine, micro_batches(step), 0, 0, step, dist.get_rank())
    save(engine, folder / "first")


def save(engine: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    ((file, tensors),) = FORMAT.write(engine.basic_optimizer, [], dist.get_rank()).items()
    write_tensors(folder / file, tensors)
    described = gather_on_rank_0(FORMAT.describe({file: tensors}))
    if described is not None:
        ((index, text),) = FORMAT.index(described).items()
        (folder / index).write_text(text)
    dist.barrier()


def load_and_save(folder: Path, layouts: list[tuple[int, int]]) -> None:
    """Load the first state at each layout and save it from there."""
    for stage, size in layouts:
        engine = engine_at(folder, stage, size)
        FORMAT.read(engine.basic_optimizer, [], folder / "first", dist.get_rank())
        save(engine, folder / f"world-{dist.get_world_size()}-stage-{stage}-size-{size}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``first``: the state after three updates at ZeRO 1 and expert-parallel size 2."""
    path = tmp_path_factory.mktemp("state")
    run_ranks(train_and_save, 2, path, path)
    return path


@pytest.mark.distributed
def test_state_goes_to_every_layout_and_back(folder: Path):
    run_ranks(load_and_save, 2, folder, folder, LAYOUTS)
    run_ranks(load_and_save, 1, folder, folder, [(3, 1)])
    first = whole_state(SavedState(folder / "first"))
    assert int(first["step"]) == 3
    assert first["encoder.blocks.1.feed_forward.experts.w1/expert_3/row"].shape == (48,)
    assert first["encoder.blocks.1.feed_forward.experts.hidden_bias.weight/expert_3/second_moment"].shape == (48,)
    assert first["shared.weight/momentum"].shape == (256 * 32,)
    assert all(tensor.any() for tensor in first.values())
    for saved in folder.glob("world-*"):
        state = whole_state(SavedState(saved))
        assert state.keys() == first.keys(), saved
        assert all(torch.equal(state[name], first[name]) for name in first), saved
    assert len(list(folder.glob("world-*"))) == len(LAYOUTS) + 1


class Counted(dict[str, Tensor]):
    """Remembers what was read."""

    def __init__(self, state: SavedState):
        super().__init__({name: state[name] for name in state})
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def read_experts(folder: Path) -> list[str]:
    engine = engine_at(folder, 1, 2)
    state = Counted(SavedState(folder / "first"))
    engine.basic_optimizer.load_named_state(state)
    return sorted({name.split("expert_")[1][0] for name in state.read if "experts.w1" in name})


@pytest.mark.distributed
def test_a_rank_reads_its_experts_only(folder: Path):
    assert run_ranks(read_experts, 2, folder, folder) == [["0", "1"], ["2", "3"]]


@pytest.mark.distributed
def test_an_index_that_lists_every_fragment_is_read(folder: Path, tmp_path: Path):
    """Checkpoints of format 3 have one."""
    shutil.copytree(folder / "first", tmp_path / "first")
    saved = SavedState(folder / "first")
    assert any("/second_moment/" in name for name in saved) and not any("/second_moment/" in n for n in saved.tensors)
    listed = {"weight_map": {name: saved.file_of(name) for name in saved}}
    (tmp_path / "first" / INDEX_FILE).write_text(json.dumps(listed))
    of_format_3 = SavedState(tmp_path / "first")
    assert sorted(of_format_3) == sorted(saved)
    assert all(torch.equal(of_format_3[name], saved[name]) for name in saved)
    tensor = next(name for name, runs in saved.runs.items() if len([*runs.overlapping(0, runs.numel)]) == 2)
    inner = (1, saved.runs[tensor].numel - 1)
    found = [{start: part.tolist() for start, part in s.fragments(tensor, *inner)} for s in (of_format_3, saved)]
    assert found[0] == found[1] and len(found[0]) == 2 and sum(map(len, found[0].values())) == inner[1] - 1
    with pytest.raises(KeyError):
        saved[f"{tensor}/0-1"]


@pytest.mark.distributed
def test_broken_files_are_named(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "first", tmp_path / "first")
    saved = SavedState(tmp_path / "first")
    file = tmp_path / "first" / "optimizer-00001.safetensors"
    name = next(name for name in saved if saved.file_of(name) == file.name)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"optimizer-00001\.safetensors cannot be read"):
        saved[name]
    file.unlink()
    with pytest.raises(ValueError, match=r"optimizer-00001\.safetensors cannot be read"):
        SavedState(tmp_path / "first")[name]
    (tmp_path / "first" / INDEX_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{INDEX_FILE} cannot be read"):
        SavedState(tmp_path / "first")
