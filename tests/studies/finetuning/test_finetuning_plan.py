"""Which runs the study has: twins, variants, identity, and what is refused before anything starts."""

import shutil
from pathlib import Path

import pytest

from data.streaming.identity import VOCABULARY
from studies.finetuning.sources import DENSE, SPARSE, Pretrained, check_twins, pretrained
from studies.finetuning.study import main
from studies.finetuning.trials import Trial, trials_of
from studies.finetuning.variants import SENTINELS, Grid, grid_of, variants_of
from studies.runner.runs import make_run, with_overrides
from tests.support.checkpoints import write_checkpoint

Twins = dict[str, Path]
ASKED = {"split": "validation"}


def models_of(twins: Twins, file: str, *overrides: str) -> dict[str, Pretrained]:
    return {kind: pretrained(kind, run, file, overrides) for kind, run in twins.items()}


def planned(models: dict[str, Pretrained], grid: Grid | None = None) -> tuple[dict[str, Trial], dict[str, str]]:
    grid = grid or grid_of(models[SPARSE].config, (), (), "examples", 1)
    trials, impossible = trials_of(models, variants_of(list(models.values()), grid), ASKED, 1)
    return {name: trial for trial in trials for name in trial.names}, impossible


def test_what_is_the_same_is_trained_once_and_every_table_begins_with_it(twins: Twins, finetuning: str):
    models = models_of(twins, finetuning)
    named, impossible = planned(models)
    assert impossible == {}
    base = named["sparse_b8_lr0.01"]
    assert base.names == (
        "sparse_b8_lr0.01", "sparse_slots", "sparse_all", "sparse_dropout0.1_expert0", "sparse_no_sentinels",
    )  # fmt: skip
    assert named["dense_slots"] is named["dense_b8_lr0.01"] is not base
    assert len({trial.key for trial in named.values()}) == len({id(trial) for trial in named.values()})
    assert [name for name in named if named[name].config.architecture().num_experts == 0] == [
        name for name in named if name.startswith("dense_")
    ]  # fmt: skip
    for kind in twins:
        scratch = named[f"{kind}_scratch"].config
        assert scratch.training.init_from is None and not scratch.training.init_optimizer
        assert vars(scratch.architecture()) == vars(named[f"{kind}_slots"].config.architecture())
        assert scratch.data.vocabulary == models[kind].config.data.vocabulary


def test_a_run_of_the_study_is_that_of_its_trial(twins: Twins, finetuning: str, tmp_path: Path):
    named, _ = planned(models_of(twins, finetuning))
    for name in ("sparse_b128_lr0.001", "dense_scratch", "sparse_moe", "dense_b32_lr0.005"):
        run = make_run(finetuning, [], name, 3, tmp_path / "out", named[name].overrides)
        there, here = run.config.model_dump(), named[name].config.model_dump()
        differing = {(s, k) for s, keys in there.items() for k, v in keys.items() if v != here[s][k]}
        own = {"seed", "eval_every", "log_every", "output_dir", "name", "non_finite", "spike_threshold"}
        assert {key for _, key in differing} <= own, (name, differing)


def test_larger_batches_see_the_same_examples_or_make_as_many_steps(twins: Twins, finetuning: str):
    config = models_of(twins, finetuning)[SPARSE].config

    def lengths(grid: Grid) -> list[tuple[int, int, int, int]]:
        found = []
        for batch in grid.batches:
            overrides = grid.overrides(config, batch, 0.01)
            changed = with_overrides(config, overrides)
            training = changed.training
            found.append(
                (training.global_batch_size, training.micro_batch_size, training.steps, changed.optimizer.warmup_steps)
            )
        return found

    assert lengths(grid_of(config, (), (), "examples", 1)) == [(8, 4, 8, 4), (32, 4, 2, 1), (128, 4, 1, 1)]
    assert lengths(grid_of(config, (), (), "steps", 1)) == [(8, 4, 8, 4), (32, 4, 8, 4), (128, 4, 8, 4)]
    assert lengths(grid_of(config, (4, 12), (), "examples", 2)) == [(4, 2, 16, 8), (12, 2, 5, 3)]
    assert grid_of(config, (), (), "steps", 1).rates == (0.01, 0.005, 0.001)
    with pytest.raises(ValueError, match="--batch-sizes 7 cannot be shared by 2 ranks"):
        grid_of(config, (7,), (), "steps", 2).overrides(config, 7, 0.01)


def test_both_peaks_of_adamw_change_alike(twins: Twins, finetuning: str):
    adamw = ["optimizer.name=adamw", "optimizer.unit_learning_rate=0.1", "training.init_optimizer=false"]
    config = models_of(twins, finetuning, *adamw)[SPARSE].config
    changed = grid_of(config, (), (), "examples", 1).overrides(config, 8, 0.001)
    assert changed == {"optimizer.learning_rate": 0.001, "optimizer.unit_learning_rate": pytest.approx(0.01)}


def test_the_key_is_of_the_weights_wherever_they_lie(twins: Twins, finetuning: str, tmp_path: Path):
    def keys_of(run: Path) -> dict[str, str]:
        model = models_of({SPARSE: run}, finetuning)
        return {name: trial.key for name, trial in planned(model)[0].items()}

    keys, moved = keys_of(twins[SPARSE]), Path(shutil.copytree(twins[SPARSE], tmp_path / SPARSE))
    assert keys_of(moved) == keys
    model = models_of({SPARSE: moved}, finetuning)[SPARSE]
    place = {"training.output_dir": str(tmp_path), "training.name": SPARSE}
    state = {"identity": {VOCABULARY: model.vocabulary}}
    write_checkpoint(with_overrides(model.config, place), step=9, data=state)  # was trained further: other weights
    trained = keys_of(moved)
    assert [name for name in keys if trained[name] == keys[name]] == ["sparse_scratch"]


def test_what_a_model_cannot_have_is_left_out_or_refused(twins: Twins, finetuning: str):
    models = models_of(twins, finetuning, "optimizer.name=adamw", "optimizer.learning_rate=0.01",
                       "training.init_optimizer=false")  # fmt: skip
    named, impossible = planned(models)
    assert set(impossible) == {"sparse_slots", "dense_slots"}  # of Adafactor
    assert "optimizer.name = adafactor" in impossible["sparse_slots"]
    assert named["sparse_no_slots"].name == "sparse_b8_lr0.01"
    without = {"model.sparse_step": 1, "model.extra_feed_forward": "none", "training.trainable": "dense_feed_forward"}
    with pytest.raises(ValueError, match=r"all feed-forwards are sparse \(model.sparse_step = 1\)"):
        with_overrides(models[SPARSE].config, without)


def test_twins_have_one_vocabulary(twins: Twins, finetuning: str):
    models = list(models_of(twins, finetuning).values())
    check_twins(models)
    with pytest.raises(ValueError, match=r"--dense .* has another vocabulary \(fingerprint other\) than --sparse"):
        check_twins([models[0], models[1]._replace(vocabulary="other")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparse", "nowhere"], "error: --sparse nowhere: no such folder"),
        (["--sparse", "DENSE"], "error: --sparse DENSE is a dense model (model.num_experts = 0): name it with --dense"),
        (["--dense", "SPARSE"], "error: --dense SPARSE is a sparse model (model.num_experts = 4): name it with"),
        (["--dense", "nowhere"], "error: --dense nowhere: no such folder"),
        (["--tasks", "sst3"], "error: --tasks sst3: there is no task 'sst3': did you mean sst2?"),
        (["--tasks", "validation"], "error: --tasks validation: that is no task to fine-tune on"),
        (["--tasks", "sst2,hypernym"], "error: task hypernym: "),
        (["--split", "dev"], "error: --split dev: task sst2 has train, validation, test"),
        (["--answers", "likeliest", "--tasks", "synopsis"], "error: --answers likeliest: task synopsis has no choices"),
        (["--only", "batchs"], "error: --only batchs: no such variant; did you mean batches?"),
        (["--only", "start", "training.steps=3"], "error: training.steps=3 follows --only and is read as a variant"),
        (["training.init_from=SPARSE"], "error: training.init_from=SPARSE: training.init_from is set by --sparse"),
        (["--config", "configs/tiny.yaml"], "error: --config configs/tiny.yaml has data.objective = span_corruption"),
        (["--report"], "error: --rows ROWS has no rows of this study"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_code_2(
    options: list[str], message: str, twins: Twins, finetuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    rows = str(tmp_path / "rows.jsonl")
    names = {"SPARSE": str(twins[SPARSE]), "DENSE": str(twins[DENSE]), "ROWS": rows}
    for name, path in names.items():
        options, message = [option.replace(name, path) for option in options], message.replace(name, path)
    base = [
        "study",
        "--sparse",
        names["SPARSE"],
        "--config",
        finetuning,
        "--out",
        str(tmp_path / "out"),
        "--rows",
        rows,
    ]
    monkeypatch.setattr("sys.argv", [*base, *options])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_costs_duration_and_jobs_and_writes_nothing(
    twins: Twins, finetuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    options = ["--sparse", str(twins[SPARSE]), "--dense", str(twins[DENSE]), "--config", finetuning, "--launcher",
               "slurm", "--gpus-per-node", "2", "--seeds", "0,1", "--dry-run", "--out", str(out),
               "--rows", str(out / "rows.jsonl"),
               "--only", "sparse_cf4_unbalanced", "dense_scratch", SENTINELS]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["study", *options])
    assert main() == 0
    printed = capsys.readouterr().out
    runs = 2 * (1 + 1 + 2)
    assert printed.count("#!/usr/bin/env bash") == printed.count("\nsbatch ") == runs
    assert printed.count(" python evaluate.py ") == runs
    assert f"\n{runs} runs, " in printed and "min of training at the speed at which" in printed
    assert not out.exists()
