"""The metrics of a run that is resumed, or that begins again: each step once, and the row of each checkpoint."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.launch import rows
from training.monitoring.writer import MetricsWriter
from training.run.folder import RunFolder


def train(writer: MetricsWriter, steps: range, saved: dict[int, int]) -> None:
    """Rows of steps; a checkpoint is begun after each second step, and its row written a step later."""
    for step in steps:
        writer.write({"step": step, "loss": float(step)})
        if step - 1 in saved:
            checkpoint = {"split": "checkpoint", "step": step - 1, "stall_seconds": 0.0, "save_seconds": 0.1}
            writer.write(checkpoint | ({"error": "disk full"} if step == 3 else {}))
            if step == 3:
                writer.write(checkpoint)  # the second try
        if step % 2 == 0:
            saved[step] = writer.nbytes
    writer.close()


def kinds(run: RunFolder) -> list[tuple[str, int]]:
    return [(row["split"], row["step"]) for row in rows(run.path)]


def curve(run: RunFolder) -> list[int]:
    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_the_row_of_the_checkpoint_survives_every_resume_from_it(tmp_path: Path):
    run = RunFolder(tmp_path)
    saved: dict[int, int] = {}
    train(MetricsWriter(run, enabled=True), range(1, 6), saved)
    with run.metrics_file.open("a") as file:
        file.write('{"split": "checkpoint", "step": 2')  # cut off by a crash
    expected = [("train", 1), ("train", 2), ("checkpoint", 2)]
    for _ in range(2):
        writer = MetricsWriter(run, enabled=True, resume_step=2, resume_bytes=saved[2])
        assert kinds(run) == expected
        assert "error" not in rows(run.path)[2]
        train(writer, range(3, 4), {})
    assert kinds(run) == [*expected, ("train", 3)]
    assert curve(run) == [1, 2, 3]


def test_a_run_that_begins_again_shows_each_step_once(tmp_path: Path):
    run = RunFolder(tmp_path)
    train(MetricsWriter(run, enabled=True), range(1, 6), {})
    train(MetricsWriter(run, enabled=True), range(1, 3), {})
    assert kinds(run) == [("train", 1), ("train", 2)]
    assert curve(run) == [1, 2]
