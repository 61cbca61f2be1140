"""The comparison of two runs finds a difference in rows or tensors, and none but times in equal ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare_runs import first_difference
from training.checkpoint.store.manifest import FileRecord, write_manifest

ROWS = [{"step": 1, "loss": 2.5, "step_seconds": 1.0}, {"step": 2, "loss": float("nan"), "step_seconds": 2.0}]


def write_run(folder: Path, rows: list[dict[str, Any]], digest: str) -> Path:
    checkpoint = folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "latest").write_text(checkpoint.name)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(checkpoint, [FileRecord("shard-00000-of-00001.safetensors", 8, digest * 64)])
    return folder


@pytest.mark.parametrize(
    ("rows", "digest", "difference"),
    [
        ([ROWS[0] | {"step_seconds": 9.0}, ROWS[1]], "a", None),
        ([ROWS[0], ROWS[1] | {"loss": 2.0}], "a", "row 2, step 2: loss = nan before, 2.0 after"),
        (ROWS[:1], "a", "row 2, step 2: step = 2 before, None after"),
        (ROWS, "b", "all rows are equal, the tensors of the last checkpoint are not"),
    ],
)
def test_first_difference(rows: list[dict[str, Any]], digest: str, difference: str | None, tmp_path: Path):
    before = write_run(tmp_path / "before", ROWS, "a")
    assert first_difference(before, write_run(tmp_path / "after", rows, digest)) == difference
