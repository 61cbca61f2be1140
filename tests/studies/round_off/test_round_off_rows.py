"""The file of finished measurements."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from studies.round_off.rows import Measurements


def test_a_measurement_is_made_once_and_a_truncated_line_again(tmp_path: Path) -> None:
    made: list[str] = []

    def measure(name: str) -> Iterator[dict[str, Any]]:
        made.append(name)
        yield {"name": name, "value": 0.1}

    file = tmp_path / "measurements.jsonl"
    for _ in range(2):
        measurements = Measurements(file)
        for name in ("a", "b"):
            of = {"run": name, "tokens": 5}
            assert measurements.rows(of, partial(measure, name)) == [{"name": name, "value": 0.1}]
    assert made == ["a", "b"]

    file.write_bytes(file.read_bytes()[:-10])  # a crash in the middle of a write
    measurements = Measurements(file)
    measurements.rows({"tokens": 5, "run": "a"}, partial(measure, "a"))
    measurements.rows({"tokens": 5, "run": "b"}, partial(measure, "b"))
    measurements.rows({"tokens": 6, "run": "b"}, partial(measure, "b again"))
    assert made == ["a", "b", "b", "b again"]
    assert len(Measurements(file).found) == 3
