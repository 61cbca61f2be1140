"""Every JSON file that this project writes is JSON by the standard."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from common.project import ROOT
from common.strict_json import finite_or_null, to_json
from training.monitoring.columns import split_of, undeclared
from training.monitoring.writer import MetricsWriter
from training.run.folder import RunFolder

NOT_FINITE = (math.nan, math.inf, -math.inf)


def strictly(text: str) -> Any:
    """Parse as a strict reader does."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_refused_or_null():
    for number in NOT_FINITE:
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"a": [number]})
    nested = {"a": [1, *NOT_FINITE, {"b": math.nan, "c": 2.5, "d": "NaN"}], "e": (True, None, math.inf)}
    text = to_json(finite_or_null(nested))
    assert strictly(text) == {"a": [1, None, None, None, {"b": None, "c": 2.5, "d": "NaN"}], "e": [True, None, None]}


def test_rows_of_a_run_that_diverged_are_json_and_are_read_as_not_a_number(tmp_path: Path):
    folder, before = RunFolder(tmp_path), time.time() - 0.001
    writer = MetricsWriter(folder, enabled=True)
    writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    writer.write({"split": "validation", "step": 1, "loss": 2.0})
    writer.close()
    rows = [strictly(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [(split_of(row), row["loss"], undeclared(row)) for row in rows] == [
        ("train", None, []),
        ("validation", 2.0, []),
    ]
    assert rows[0]["split"] == "train"
    assert rows[0]["grad_norm"] is None
    assert all(before <= row["time"] <= time.time() + 0.001 for row in rows)
    assert math.isnan(folder.rows()[0]["loss"])
    folder.write_summary({"steps": 1, "validation_cross_entropy": math.nan})
    assert strictly(folder.summary_file.read_text())["validation_cross_entropy"] is None


def test_no_other_module_makes_json():
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("**/*.py")
        if path.relative_to(ROOT).parts[0] not in ("tests", ".venv", "runs", "exported", "build")
        and re.search(r"\bjson\.dumps?\(|import dumps?\b", path.read_text(encoding="utf-8"))
    }
    assert found == {"common/strict_json.py"}
