"""The file of results: nothing is lost, whoever writes and whatever happened to the file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from studies.results.rows import RUN, TIME, append_row, of_kind, quietest, read_rows


def row(seed: int, key: str = "a", **more: Any) -> dict[str, Any]:
    return {"kind": RUN, "key": key, "seed": seed, **more}


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path):
    path = tmp_path / "rows" / "rows.jsonl"
    wanted = [row(seed, key) for seed in range(20) for key in "abcd"]
    with ThreadPoolExecutor(8) as pool:  # each opens the file for itself, as processes do
        assert all(pool.map(lambda one: append_row(path, one), wanted))
    found = read_rows(path)
    assert len(found) == len(wanted)
    assert all(one in found for one in wanted)


def test_a_result_stands_once(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert append_row(path, row(0, value=1.0))
    assert not append_row(path, row(0, value=2.0))
    timed = {"kind": TIME, "key": "a", "device": "x", "threads": 1, "date": "monday", "load_average": 2.0}
    assert append_row(path, timed)
    assert append_row(path, timed | {"threads": 2})
    assert append_row(path, timed | {"date": "sunday", "load_average": 0.5})  # made again
    assert not append_row(path, timed | {"load_average": 0.0})
    assert [one.get("value") for one in read_rows(path)] == [1.0, None, None, None]
    best = quietest(of_kind(read_rows(path), TIME, ["a"]))
    assert [(one["threads"], one["load_average"]) for one in best] == [(1, 0.5), (2, 2.0)]


def test_a_torn_line_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(0))
    with path.open("a") as file:
        file.write('<<<<<<< ours\n[1]\n{"kind": "run", "key": "a", "se')
    assert append_row(path, row(1, loss=float("nan")))
    assert append_row(path, row(2))
    assert read_rows(path) == [row(0), row(1, loss=None), row(2)]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: lines 2-4 are no rows and are passed over"]


def test_no_file_has_no_rows(tmp_path: Path):
    assert read_rows(tmp_path / "rows.jsonl") == []
