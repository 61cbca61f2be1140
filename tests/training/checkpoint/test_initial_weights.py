"""A run that begins with the weights of another: at any layout, from a run, a checkpoint or an export."""

import json
import shutil
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import yaml
from torch import Tensor

from data.streaming.identity import VOCABULARY
from data.tokenizer import train_vocabulary
from model.architecture import Architecture
from tests.support.corpus import sentences
from tests.support.launch import python, rows, train
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, global_batch, small_config
from training.checkpoint.capture import Moment
from training.checkpoint.initial.begin import begin_with
from training.checkpoint.initial.fitting import load_run_config
from training.checkpoint.initial.readers import open_source
from training.checkpoint.initial.source import look_into
from training.checkpoint.saver import Saver
from training.config.run import RunConfig
from training.engine.build import build_engine
from training.engine.parameters import engine_partitions
from training.engine.step import update


@pytest.fixture(scope="module")
def source(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config file of a run of 4 steps on one process, and its folder."""
    folder = tmp_path_factory.mktemp("source")
    config = small_config(
        folder,
        data=corpus,
        # no group of tokens with more than one sequence: nothing depends on the world size
        model=TWO_BLOCKS | {"second_policy": "all", "group_size": 8},
        training={
            "steps": 4,
            "micro_batch_size": 2,
            "log_every": 1,
            "eval_every": 4,
            "eval_examples": 16,
            "save_every": 2,
        },
    )
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = train(file, "training.name=source", "optimizer.learning_rate=0.05")
    assert result.returncode == 0, result.stderr[-3000:]
    return file, folder / "runs" / "source"


def validations(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["cross_entropy"] for row in rows(run_dir) if row["split"] == "validation"}


@pytest.mark.distributed
def test_the_loss_before_the_first_step_is_that_of_the_source(source: tuple[Path, Path], tmp_path: Path):
    config, run_dir = source
    exported = tmp_path / "exported"
    assert python("convert.py", "export", str(run_dir), "--output", str(exported)).returncode == 0
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    zero3 = small_config(tmp_path, zero_stage=3).training.deepspeed_config
    other = [
        "optimizer.learning_rate=0.02",
        "optimizer.name=adamw",
        "training.steps=2",
        f"training.output_dir={tmp_path}",
    ]
    spread = ["parallel.expert_parallel_size=2", f"training.deepspeed_config={zero3}"]
    expected = validations(run_dir)[4]
    for name, path, ranks, options in (
        ("run", moved, 1, []),
        ("export", exported, 2, spread),
        ("checkpoint", moved / "checkpoints" / "step_00000004", 2, spread),
    ):
        result = train(config, *other, *options, f"training.init_from={path}", f"training.name={name}", ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"beginning with the weights of {path}" in result.stdout
        found = validations(tmp_path / name)
        assert found[0] == pytest.approx(expected, abs=1e-6), name
        assert found[2] != found[0]
        assert json.loads((tmp_path / name / "summary.json").read_text())["init_from"] == str(path)
        first = next(row for row in rows(tmp_path / name) if row["split"] == "train")
        assert (first["step"], first["learning_rate"]) == (1, 0.02)  # a new schedule
    shutil.rmtree(moved)  # a resumed run continues with its own weights
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"]
    resumed = train(tmp_path / "run" / "config.yaml", "--resume", "training.steps=3")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "beginning with" not in resumed.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["wall_seconds"] > before > 0  # of both sessions
    assert sorted(validations(tmp_path / "run")) == [0, 2, 3]


def test_weights_that_do_not_fit_are_refused_in_one_line(
    source: tuple[Path, Path], corpus: dict[str, Any], tmp_path: Path
):
    config, run_dir = source
    vocabulary = tmp_path / "vocabulary"
    train_vocabulary(sentences(200, seed=9), 40, vocabulary)
    empty = tmp_path / "empty"
    empty.mkdir()
    from_source = f"training.init_from={run_dir}"
    for options, words in (
        ([from_source, "model.d_ff=64"], " has model.d_ff = 48, and this run model.d_ff = 64: set model.d_ff=48, or"),
        ([from_source, f"data.vocabulary={vocabulary}"], "was trained with another vocabulary"),
        ([f"training.init_from={empty}"], "holds neither checkpoints nor model.safetensors"),
        (["training.init_from=nowhere"], "no such folder"),
        ([from_source, "model.rms_norm_scale=false"], " has model.rms_norm_scale = True, and this run model.rms_norm_"),
        ([from_source, "model.extra_feed_forward=none"], " has model.extra_feed_forward = after, and this run model."),
        (
            [from_source, "training.init_optimizer=true", "optimizer.name=adamw"],
            " has optimizer.name = adafactor, and this run optimizer.name = adamw",
        ),
    ):
        result = train(config, *options, f"training.output_dir={tmp_path}", "training.name=refused")
        assert result.returncode == 2, (options, result.stderr[-2000:])
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: training.init_from = "), line
        assert words in line
        assert "Traceback" not in result.stderr
        assert "importing torch" not in result.stdout and not (tmp_path / "refused").exists()


def test_what_the_config_leaves_out_is_that_of_the_weights(source: tuple[Path, Path], tmp_path: Path):
    _, run_dir = source
    exported = tmp_path / "exported"
    assert python("convert.py", "export", str(run_dir), "--output", str(exported)).returncode == 0
    file = tmp_path / "own.yaml"
    file.write_text("model: {dropout_rate: 0.1}\ntraining: {init_optimizer: true, name: own}\n")
    trained = yaml.safe_load((run_dir / "config.yaml").read_text())
    for place in (run_dir, run_dir / "checkpoints" / "step_00000002", exported):
        config = load_run_config(file, [f"training.init_from={place}", f"training.output_dir={tmp_path}"])
        served = {"capacity": "factor", "second_policy": "random"} if place == exported else {}  # this project's own
        expected = Architecture(**trained["model"] | {"dropout_rate": 0.1} | served)  # an export has resolved defaults
        assert vars(config.architecture()) == vars(expected)
        assert config.data.vocabulary == str(exported if place == exported else run_dir / "vocabulary")
        factored = {True: 128, False: trained["optimizer"]["min_dim_size_to_factor"]}[place == exported]
        assert config.optimizer.min_dim_size_to_factor == factored
        assert config.optimizer.learning_rate == 1e-2  # not of the source


def _step(engine: Any, step: int) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    micro = [{k: v[i : i + 4] for k, v in global_batch(step, 8).items()} for i in range(4 * rank, 8, 4 * world)]
    update(engine, micro, 0, 0, step, rank)


def _weights(engine: Any) -> dict[str, Tensor]:
    """This rank's share of the master weights by parameter and first element."""
    return {
        f"{segment.spec.name}/{segment.elements.start}": segment.view(partition.tensor.detach().view(-1)).clone()
        for partition in engine_partitions(engine)
        for segment in partition.held()
    }


def _continued(folder: str, optimizer: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Weights after one more step of a run, and of runs that begin with its weights: with its slots, and without."""

    def config(name: str, **training: Any) -> RunConfig:
        ep = {"expert_parallel_size": dist.get_world_size()}
        return small_config(Path(folder), model=TWO_BLOCKS | {"second_policy": "all"}, optimizer=optimizer,
                            parallel=ep, training={"name": name} | training)  # fmt: skip

    run = config("source")
    engine = build_engine(run, dist.get_world_size(), "cpu")
    for step in range(3):
        _step(engine, step)
    rank = str(dist.get_rank())
    data = {"identity": {VOCABULARY: "x"}, "next_example": 0, "streams": {rank: rank}}
    saver = Saver(run, "cpu")
    saver.start(engine, Moment(3, 7, data, guard={}, evaluated=None, metrics_bytes=0, code={}))
    saver.wait()
    _step(engine, 3)
    found = [_weights(engine)]
    for slots in (True, False):
        later = config("later", init_from=str(run.run_dir), init_optimizer=slots)
        engine = build_engine(later, dist.get_world_size(), "cpu")
        _step(engine, 99)  # all that there is must be replaced
        reader = open_source(look_into(run.run_dir, "run"), later.st_moe_config(), "run")
        if not slots:  # a new engine: the optimizer has seen nothing
            engine = build_engine(later, dist.get_world_size(), "cpu", initialize=False)
        begin_with(engine, reader, later)
        _step(engine, 3)
        found.append(_weights(engine))
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", [{"min_dim_size_to_factor": 16}, {"name": "adamw", "warmup": "constant"}])
def test_with_the_optimizers_state_the_first_step_is_that_of_the_source(optimizer: dict[str, Any], tmp_path: Path):
    for continued, with_slots, without in run_ranks(_continued, 2, tmp_path, str(tmp_path), optimizer):
        assert continued.keys() == with_slots.keys()
        assert all(with_slots[name].equal(weights) for name, weights in continued.items())
        assert not all(without[name].equal(weights) for name, weights in continued.items())
