"""What the report says of a finished run."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.report import describe


@pytest.mark.parametrize(
    ("figures", "lines"),
    [
        (
            {"steps": 60, "session_steps": 60, "session_seconds": 56.4, "validation_cross_entropy": 5.0},
            ("Trained 60 steps on 300,000 tokens", "size 2, in 56 s.", "5.000 nats per target, 0.500 below the"),
        ),
        (
            {"steps": 100, "session_steps": 40, "session_seconds": 24.0, "validation_cross_entropy": 5.7},
            ("Trained 100 steps", "size 2, the last 40 steps in 24 s.", "5.700 nats per target, 0.200 above the"),
        ),
    ],
)
def test_the_report_tells_sessions_and_the_sides_of_the_baseline_apart(
    tmp_path: Path, figures: dict[str, Any], lines: tuple[str, ...]
):
    summary = {"tokens": 300_000, "world_size": 2, "expert_parallel_size": 2, "unigram_cross_entropy": 5.5, **figures}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = describe(tmp_path)
    assert all(line in text for line in lines), text


def test_a_folder_without_a_finished_run_has_no_report(tmp_path: Path):
    with pytest.raises(OSError, match=r"summary\.json does not exist"):
        describe(tmp_path)
