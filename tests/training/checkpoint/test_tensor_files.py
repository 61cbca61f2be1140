"""Files written chunk by chunk, and ranges read across them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from training.checkpoint.store.index import (
    INDEX_FILE,
    WEIGHT,
    Index,
    StoredParameter,
    TensorReader,
    chunks,
    rank_file_name,
    write_ranges,
)
from training.checkpoint.store.runs import Runs
from training.checkpoint.store.tensor_file import TensorFileWriter

STATES = {WEIGHT: torch.float32, "exp_avg": torch.bfloat16}


def test_safetensors_reads_what_was_written_in_pieces(tmp_path: Path):
    a, b = torch.randn(3, 5), torch.randn(7).bfloat16()
    file = tmp_path / "a.safetensors"
    promised = {"a": (torch.float32, (3, 5)), "empty": (torch.float32, (0, 2)), "b": (torch.bfloat16, (7,))}
    with TensorFileWriter(file, promised) as writer:
        for piece in (a.view(-1)[:4], a.view(-1)[4:], b[:1], b[1:]):
            writer.append(piece)
    found = load_file(file)
    assert torch.equal(found["a"], a)
    assert torch.equal(found["b"], b)
    assert found["empty"].shape == (0, 2)


def test_pieces_that_do_not_fit_are_refused(tmp_path: Path):
    promised = {"a": (torch.float32, (4,))}

    def write(file: Path, pieces: list[torch.Tensor]) -> None:
        with TensorFileWriter(file, promised) as writer:
            for piece in pieces:
                writer.append(piece)

    for number, pieces in enumerate(([5], [2, 3], [4, 1], [3])):
        with pytest.raises(ValueError, match=r"do not fit|12 of 16 bytes were written"):
            write(tmp_path / str(number), [torch.zeros(size) for size in pieces])
    with pytest.raises(ValueError, match=r"do not fit a of torch\.float32"):
        write(tmp_path / "x", [torch.zeros(4, dtype=torch.bfloat16)])
    with pytest.raises(FileExistsError):
        TensorFileWriter(tmp_path / "x", promised)


@settings(deadline=None)  # files are synced
@given(data=st.data())
def test_any_range_reads_back_however_parameters_are_cut(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("files")
    files = data.draw(st.integers(1, 3))
    whole, parameters = {}, {}
    for name in ("a", "b"):
        numel = data.draw(st.integers(1, 40))
        whole[name] = {state: torch.randn(numel).to(dtype) for state, dtype in STATES.items()}
        cuts = sorted(data.draw(st.sets(st.integers(1, numel - 1), max_size=files - 1)) if numel > 1 else ())
        owners = data.draw(st.permutations(range(files)))
        pieces = [(start, stop, owner) for start, stop, owner in zip([0, *cuts], [*cuts, numel], owners, strict=False)]
        parameters[name] = StoredParameter((numel,), False, Runs.of(pieces))
    states = {state: str(dtype).removeprefix("torch.") for state, dtype in STATES.items()}
    names = tuple(rank_file_name(file, files) for file in range(files))
    index = Index(states, {"step": 3.0}, names, parameters)
    (folder / INDEX_FILE).write_text(index.to_json())
    for mine in names:
        ranges = [
            (n, p.start, p.stop) for n, e in parameters.items() for p in index.stored(n, 0, e.numel) if p.file == mine
        ]
        write_ranges(folder / mine, ranges, lambda _: STATES, lambda name, state, a, b: whole[name][state][a:b])

    reader = TensorReader(folder)
    assert reader.index == index
    for name, tensors in whole.items():
        start = data.draw(st.integers(0, parameters[name].numel - 1))
        stop = data.draw(st.integers(start + 1, parameters[name].numel))
        for state, tensor in tensors.items():
            assert torch.equal(reader.read(name, state, start, stop), tensor[start:stop])


@pytest.mark.parametrize("pieces", [[(0, 4)], [(0, 3), (4, 6)], [(0, 4), (3, 6)], [(0, 3), (3, 6), (6, 7)], []])
def test_an_index_with_holes_or_overlaps_is_refused(pieces: list[tuple[int, int]]):
    with pytest.raises(ValueError, match=r"do not make up its 6 elements|element [346] is in (no|several) range"):
        Index({}, {}, ("f",), {"a": StoredParameter((2, 3), False, Runs.of((*piece, 0) for piece in pieces))})


def test_an_index_of_format_3_is_read(tmp_path: Path):
    files = [rank_file_name(rank, 4) for rank in range(4)]
    pieces = [[0, 4, files[2]], [4, 8, files[0]], [8, 9, files[3]]]
    entry = {"shape": [3, 3], "expert": True, "pieces": pieces, "frozen": True}
    values = {"states": {WEIGHT: "float32"}, "scalars": {"step": 3.0}, "parameters": {"a": entry}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(values))
    index = Index.read(tmp_path)
    assert [list(stored) for stored in index.stored("a", 0, 9)] == pieces
    assert [list(stored) for stored in index.stored("a", 5, 8)] == [pieces[1]]
    assert index.parameters["a"] == StoredParameter((3, 3), True, index.parameters["a"].ranges, frozen=True)
    (tmp_path / INDEX_FILE).write_text(index.to_json())
    assert Index.read(tmp_path) == index
    entry["pieces"] = pieces[:2]
    (tmp_path / INDEX_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="do not make up its 9 elements"):
        Index.read(tmp_path)


def test_a_range_in_no_file_is_refused():
    with pytest.raises(ValueError, match="a is in file 1 of 1"):
        Index({}, {}, ("f",), {"a": StoredParameter((2,), False, Runs.of([(0, 2, 1)]))})


def test_missing_and_broken_files_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"index\.json cannot be read"):
        TensorReader(tmp_path)
    parameter = StoredParameter((4,), False, Runs.of([(0, 4, 0)]))
    (tmp_path / INDEX_FILE).write_text(Index({WEIGHT: "float32"}, {}, ("f.safetensors",), {"a": parameter}).to_json())
    with pytest.raises(ValueError, match=r"f\.safetensors cannot be read"):
        TensorReader(tmp_path).read("a", WEIGHT, 0, 4)
    write_ranges(
        tmp_path / "f.safetensors", [("a", 0, 4)], lambda _: {WEIGHT: torch.float32}, lambda *_: torch.arange(4.0)
    )
    assert TensorReader(tmp_path).read("a", WEIGHT, 1, 3).tolist() == [1.0, 2.0]
    (tmp_path / "f.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"f\.safetensors cannot be read"):
        TensorReader(tmp_path).read("a", WEIGHT, 0, 4)


def test_chunks_make_up_the_range(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.checkpoint.store.index.CHUNK", 4)
    assert list(chunks(3, 12)) == [(3, 7), (7, 11), (11, 12)]
    assert list(chunks(3, 3)) == []
