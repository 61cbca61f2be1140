"""convert.py, and resuming at another layout, on the checkpoint of a real run."""

import hashlib
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

import convert
from common.exit_codes import USER_ERROR
from model.st_moe import StMoeForConditionalGeneration
from tests.support.forks import fork
from tests.support.launch import python, rows, train
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, global_batch, small_config
from tests.support.trained import trained_run
from training.checkpoint.load import load_checkpoint
from training.checkpoint.optimizer_state.adafactor import SavedState
from training.checkpoint.reshard import rank_share, reshard, resume_command
from training.checkpoint.resume import find_checkpoint, read_checkpoint
from training.checkpoint.store.index import WEIGHT, StoredParameter, TensorReader
from training.checkpoint.store.runs import Runs
from training.checkpoint.store.state import STATE_FILE
from training.checkpoint.store.tensor_file import TensorFileWriter
from training.config.checks import check_layout
from training.config.errors import ConfigError
from training.config.run import load_config, validate
from training.engine.build import build_engine
from training.export.export import export

NAME = "step_00000004"


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on two ranks, at EP 2 and ZeRO 1, that was saved after 4."""
    folder = tmp_path_factory.mktemp("trained")
    return trained_run(
        folder,
        ranks=2,
        data=corpus,
        parallel={"expert_parallel_size": 2},
        # no random draws, and no group of tokens with more than one sequence: nothing depends on the world size
        model=TWO_BLOCKS | {"second_policy": "all", "group_size": 8},
        training={
            "steps": 8, "micro_batch_size": 2, "log_every": 1, "eval_every": 8, "eval_examples": 16, "save_every": 4,
        },
    )  # fmt: skip


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run whose newest checkpoint is that of step 4."""
    copy = tmp_path / "runs" / trained.name
    shutil.copytree(trained, copy)
    (copy / "checkpoints" / "latest").write_text(NAME)
    return copy


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    reader = TensorReader(folder)
    return {
        f"{name}/{state}": reader.read(name, state, 0, entry.numel)
        for name, entry in reader.index.parameters.items()
        for state in reader.index.states
    }


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.distributed
def test_a_run_resumes_at_another_layout_and_says_so(run_dir: Path, tmp_path: Path):
    zero3 = small_config(tmp_path, zero_stage=3).training.deepspeed_config
    expected = {row["step"]: row["loss"] for row in rows(run_dir) if row["split"] == "train"}
    result = train(
        run_dir / "config.yaml", "--resume", f"training.output_dir={run_dir.parent}",
        "parallel.expert_parallel_size=1", f"training.deepspeed_config={zero3}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = run_dir / "checkpoints" / NAME
    said = (
        f"going on from {checkpoint}, which was written at EP 2, world 2, ZeRO 1, fp32, at EP 1, world 1, ZeRO 3, fp32"
    )
    assert result.stdout.count(said) == 1
    found = [row for row in rows(run_dir) if row["split"] == "train"]
    assert [row["step"] for row in found] == list(range(1, 9))
    for row in found:
        assert row["loss"] == pytest.approx(expected[row["step"]], abs=1e-5)
    state = read_checkpoint(run_dir).state
    assert (state.step, state.world_size, state.zero_stage) == (8, 1, 3)


@pytest.mark.distributed
def test_reshard_keeps_every_tensor_and_the_original(run_dir: Path):
    source = run_dir / "checkpoints" / NAME
    before, tensors, saved = _hashes(source), _tensors(source), read_checkpoint(run_dir).state
    arguments = ["--expert-parallel-size", "2", "--world-size", "4", "--zero-stage", "3"]
    result = python("convert.py", "reshard", str(run_dir), *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "train.py --config" in result.stdout
    folder, state = read_checkpoint(run_dir)
    assert folder.name == f"{NAME}-ep2-world4-zero3"
    files = [name for name in sorted(_hashes(folder)) if name.startswith("rank")]
    assert files == [f"rank-0000{i}-of-00004.safetensors" for i in range(4)]
    assert _same(_tensors(folder), tensors)
    assert _same(dict(SavedState(folder)), dict(SavedState(source)))
    assert _hashes(source) == before
    assert (state.step, state.tokens, state.data, state.engine) == (4, saved.tokens, saved.data, saved.engine)
    assert (state.world_size, state.zero_stage, state.config["parallel"]["expert_parallel_size"]) == (4, 3, 2)
    # each rank's experts and nothing of the others' are in its file
    key = next(key for key in tensors if key.endswith("experts.w1/weight"))
    parts = [load_file(folder / files[rank])[key] for rank in (0, 2, 1, 3)]
    assert torch.equal(torch.cat(parts), tensors[key])


@pytest.mark.distributed
def test_a_finished_run_is_not_trained_again(trained: Path):
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.name != ".lock"}
    again = train(trained / "config.yaml", "--resume", ranks=2)
    assert again.returncode == 0 and "is done at step 8; set training.steps higher" in again.stdout, again
    shorter = train(trained / "config.yaml", "--resume", "training.steps=7", ranks=2)
    assert shorter.returncode == USER_ERROR
    assert f"--resume: training.steps = 7 but {trained} is at step 8: set at least 8" in shorter.stderr
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.distributed
def test_the_printed_command_starts_where_a_micro_batch_is_more_than_the_share_of_a_rank(run_dir: Path):
    folder = reshard(run_dir, 1, 4, 1)
    for file, size in ((run_dir / "config.yaml", "micro_batch_size: "), (folder / STATE_FILE, '"micro_batch_size": ')):
        text = file.read_text()
        assert f"{size}2" in text
        file.write_text(text.replace(f"{size}2", f"{size}8"))  # the global batch
    command = [word for word in resume_command(run_dir, folder).split() if word != "--resume"]
    assert command[:4] == ["deepspeed", "--quiet", "--num_gpus", "4"] and command[-1] == "training.micro_batch_size=2"
    check_layout(load_config(command[6], command[7:]), 4)
    with pytest.raises(ConfigError, match=r"or training\.micro_batch_size=2$"):
        check_layout(load_config(command[6], command[7:-1]), 4)


def _reshard_and_die(run_dir: Path) -> None:
    """Die of SIGKILL after 39 chunks of tensors."""
    append, count = TensorFileWriter.append, itertools.count(1)

    def append_or_die(self: TensorFileWriter, chunk: torch.Tensor) -> None:
        if next(count) == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, chunk)

    TensorFileWriter.append = append_or_die  # type: ignore[method-assign]
    reshard(run_dir, 1, 2, 2)


@pytest.mark.distributed
def test_a_conversion_killed_in_the_middle_damages_nothing(run_dir: Path):
    checkpoints = run_dir / "checkpoints"
    before, folders = _hashes(checkpoints / NAME), {path.name for path in checkpoints.iterdir()}
    assert len(folders) == 3  # two checkpoints and latest
    killed = fork(_reshard_and_die, run_dir)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    left = {path.name for path in checkpoints.iterdir()} - folders
    assert left == {f".{NAME}-ep1-world2-zero2.partial"}
    assert (checkpoints / "latest").read_text() == NAME
    assert _hashes(checkpoints / NAME) == before

    folder = reshard(run_dir, 1, 2, 2)
    assert "micro_batch_size" not in resume_command(run_dir, folder)
    assert _same(_tensors(folder), _tensors(checkpoints / NAME))
    assert {path.name for path in checkpoints.iterdir()} - folders == {folder.name}
    # killed after the copy was whole, before latest was moved: it is used
    (checkpoints / "latest").write_text(NAME)
    written = (folder / "index.json").stat().st_mtime_ns
    assert reshard(run_dir, 1, 2, 2) == folder
    assert (folder / "index.json").stat().st_mtime_ns == written
    assert read_checkpoint(run_dir).folder == folder


def _logits(run_dir: str, exported: str) -> dict[str, Any]:
    """Of the engine and of the exported model, on the same batch."""
    values = yaml.safe_load((Path(run_dir) / "config.yaml").read_text())
    values["training"]["output_dir"] = str(Path(run_dir).parent)
    values["parallel"]["expert_parallel_size"] = 1
    config = validate(values)
    engine = build_engine(config, 1, "cpu")
    load_checkpoint(engine, find_checkpoint(config, 1, 1))
    model = StMoeForConditionalGeneration.from_pretrained(exported)
    batch = global_batch(0, 4, vocab_size=150)
    engine.eval()
    with torch.no_grad():
        return {"engine": engine(**batch).logits, "exported": model(**batch).logits}


@pytest.mark.distributed
def test_export_gives_the_same_logits_and_generates(run_dir: Path, tmp_path: Path):
    out = tmp_path / "exported"
    result = python("convert.py", "export", str(run_dir), "--output", str(out), "--routing", "trained")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "The output for a text depends on the texts beside it" in result.stdout
    logits = run_ranks(_logits, 1, tmp_path, str(run_dir), str(out))[0]
    assert torch.equal(logits["engine"], logits["exported"])

    model, info = StMoeForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(["kada lone <extra_id_0> mipo"], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert tokens.shape[0] == 1
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1


@pytest.mark.distributed
def test_export_in_bf16_and_several_files(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.export.weights.MAX_FILE_BYTES", 50_000)
    export(run_dir, tmp_path / "exported", torch.bfloat16)
    assert len(list((tmp_path / "exported").glob("model-*.safetensors"))) > 2
    model = StMoeForConditionalGeneration.from_pretrained(tmp_path / "exported")
    reader = TensorReader(run_dir / "checkpoints" / NAME)
    assert {name for name, _ in model.named_parameters()} == reader.index.parameters.keys()
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if "router" in name else torch.bfloat16
        assert parameter.dtype == dtype
        master = reader.read(name, WEIGHT, 0, parameter.numel()).view(parameter.shape)
        assert torch.equal(parameter, master.to(dtype)), name


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reshard", "RUN", "3", "3", "1"], "parallel.expert_parallel_size = 3 does not divide model.num_experts = 4"),
        (
            ["reshard", "RUN", "2", "1", "1"],
            "does not divide --world-size 1: set --world-size to a multiple of 2, or parallel.expert_parallel_size=1",
        ),
        (["reshard", "RUN", "1", "3", "1"], "--world-size 3 does not divide data.num_streams = 4"),
        (["reshard", "OUT", "1", "1", "1"], "no such folder"),
        (["export", "RUN", "RUN"], "exists"),
        (["export", "OUT", "x"], "no such folder"),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    arguments: list[str],
    words: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    command, *values = [a.replace("RUN", str(trained)).replace("OUT", str(tmp_path / "none")) for a in arguments]
    options = ["--output"] if command == "export" else ["--expert-parallel-size", "--world-size", "--zero-stage"]
    pairs = [word for pair in zip(options, values[1:], strict=True) for word in pair]
    monkeypatch.setattr(sys, "argv", ["convert.py", command, values[0], *pairs])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("expert", [False, True])
@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 2)])
def test_shares_of_all_ranks_make_up_the_parameter(expert: bool, ranks: int, size: int):
    entry = StoredParameter((6, 5), expert, Runs())
    shares = sorted(rank_share(entry, rank, size, ranks) for rank in range(ranks))
    assert [i for start, stop in shares for i in range(start, stop)] == list(range(30))
    if expert and size > 1:  # a rank holds nothing of experts that are not its own
        block = 30 // size
        for rank in range(ranks):
            start, stop = rank_share(entry, rank, size, ranks)
            assert start == stop or start // block == (stop - 1) // block == rank % size
