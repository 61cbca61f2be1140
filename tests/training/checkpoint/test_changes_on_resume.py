"""What may differ between a checkpoint and the run that resumes from it: refused, said, or of no effect."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.small import small_config
from training.checkpoint.resume import find_checkpoint
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.run.folder import RunFolder, check_place


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    values = config.model_dump()
    return validate(values | {name: values[name] | keys for name, keys in sections.items()})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_elsewhere_is_refused_unless_its_end_is_set(
    schedule: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    optimizer = {"schedule": schedule, "warmup_steps": 2}
    config = small_config(tmp_path, optimizer=optimizer, training={"steps": 12})
    write_checkpoint(config, step=12)
    assert find_checkpoint(config, 2, 1).state.step == 12
    with pytest.raises(ConfigError) as error:
        find_checkpoint(changed(config, training={"steps": 24}), 2, 1)
    words = str(error.value)
    assert "--resume: training.steps = 24: optimizer.schedule = " in words
    assert "ends at step 24, 12 until now: the learning rate of step 13 is 0.00" in words
    assert "in place of 0: set optimizer.decay_steps=12 to keep the schedule, or optimizer.decay_steps=24" in words
    assert not caplog.messages
    find_checkpoint(changed(config, training={"steps": 24}, optimizer={"decay_steps": 12}), 2, 1)
    assert not caplog.messages  # the same schedule
    find_checkpoint(changed(config, training={"steps": 24}, optimizer={"decay_steps": 24}), 2, 1)
    (said,) = caplog.messages
    assert said.startswith(
        f"optimizer.schedule = {schedule} ends at step 24, 12 until now: the learning rate of step 13"
    )


def test_the_end_of_the_steps_is_no_end_of_other_schedules(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = small_config(tmp_path, training={"steps": 12})
    write_checkpoint(config, step=12)
    find_checkpoint(changed(config, training={"steps": 24}), 2, 1)
    assert not caplog.messages


def test_what_is_only_said_and_what_has_no_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = small_config(tmp_path)
    write_checkpoint(config)
    harmless = {"log_every": 3, "save_every": 7, "eval_every": 9, "keep_checkpoints": 5, "init_from": "nowhere"}
    find_checkpoint(changed(config, training=harmless, guard={"spike_threshold": 6.0}, data={"num_workers": 3}), 2, 1)
    assert not caplog.messages
    noted = {"precision": "bf16", "micro_batch_size": 2, "eval_examples": 8}
    find_checkpoint(changed(config, training=noted, data={"validation_files": "other/*.gz"}), 2, 1)
    assert [text.partition(" is ")[0] for text in caplog.messages] == [
        "training.precision", "training.micro_batch_size", "training.eval_examples", "data.validation_files"
    ]  # fmt: skip
    assert "training.precision is bf16, fp32 until now: " in caplog.messages[0]


def test_the_config_of_a_copied_run_is_asked_about(tmp_path: Path):
    config = small_config(tmp_path, training={"name": "a"})
    run = RunFolder(config.run_dir)
    run.write_config(config)
    run.metrics_file.write_text("")
    copy = tmp_path / "runs" / "copy"
    copy.mkdir()
    for file in (run.config_file, run.metrics_file):
        (copy / file.name).write_text(file.read_text())
    check_place(run.config_file, [], config)
    with pytest.raises(ConfigError) as error:
        check_place(copy / "config.yaml", ["training.steps=9"], config)
    words = str(error.value)
    assert f"lies in the run folder {copy}, but names the run {config.run_dir}: add " in words
    assert f"training.output_dir={tmp_path / 'runs'} training.name=copy for the run in that folder" in words
    check_place(copy / "config.yaml", ["training.name=b"], changed(config, training={"name": "b"}))
    (copy / "metrics.jsonl").unlink()  # a config file that is no run's
    check_place(copy / "config.yaml", [], config)
