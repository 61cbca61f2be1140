"""The page of pictures: what it shows of runs whole, unfinished, old and damaged, and that it holds all it shows."""

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import python
from training.report import __main__ as program
from training.report import page
from training.report.history import NoRunError, by_hours, by_step, by_tokens, newest_loads, read_history, thinned
from training.report.page import check_target, to_html, write_page

NASTY = '<script>alert("$x$ & y")</script>'


def rows_of(steps: int, seed: int = 0, *, sparse: bool = True) -> Iterator[dict[str, Any]]:
    for step in range(10, steps + 1, 10):
        row: dict[str, Any] = {
            "split": "train", "step": step, "tokens": 1000 * step, "time": 1e9 + step, "loss": 5 - step / 100,
            "cross_entropy": 5 - step / 100 + seed, "load_balance_loss": 1.1, "router_z_loss": 2.0, "grad_norm": 0.5,
            "dropped_fraction": 0.05, "learning_rate": 0.01, "tokens_per_second": 5000.0, "step_seconds": 3.6,
            "mfu": 0.25, "peak_memory_bytes": 2**30,
        }  # fmt: skip
        if sparse:
            row |= {f"router_entropy/{layer}": 2.0 for layer in ("encoder_1", "encoder_11", "decoder_3")}
        yield row
        if step % 20 == 0:
            yield {"split": "validation", "step": step, "tokens": 1000 * step, "cross_entropy": 5 - step / 100}
            yield {"split": "routing", "step": step, "tokens": 1000 * step, "load/encoder_1": [0.5, 0.25, 0.25, 0.0]}
            yield {"split": "checkpoint", "step": step, "stall_seconds": 0.1, "save_seconds": 0.2, "rank_bytes": 1}


@pytest.fixture
def over_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw over steps alone, which is faster."""
    monkeypatch.setattr(page, "AXES", {"step": page.AXES["step"]})


def write_run(run: Path, rows: list[dict[str, Any]], tail: str = "", **sections: dict[str, Any]) -> Path:
    run.mkdir(parents=True)
    config: dict[str, Any] = {
        "model": {"num_experts": 4},
        "training": {"steps": 100, "name": run.name, "output_dir": str(run.parent)},
    }
    (run / "config.yaml").write_text(
        yaml.safe_dump({key: value | sections.get(key, {}) for key, value in config.items()})
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return run


def pictures(page: str) -> dict[str, list[str]]:
    """Every picture's SVG by the words that stand for it."""
    found: dict[str, list[str]] = {}

    class Images(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = dict(attrs)
            if tag == "img":
                kind, _, data = str(values["src"]).partition(",")
                assert kind == "data:image/svg+xml;base64"
                found.setdefault(str(values["alt"]), []).append(base64.b64decode(data).decode())

    Images().feed(page)
    return found


def text_of(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_two_runs_side_by_side(tmp_path: Path):
    sparse = write_run(tmp_path / "sparse", list(rows_of(40)))
    dense = write_run(tmp_path / "dense", list(rows_of(60, 1, sparse=False)), model={"num_experts": 0})
    file = tmp_path / "new folder" / "page.html"
    write_page([read_history(sparse), read_history(dense)], file)
    text = file.read_text(encoding="utf-8")
    shown = pictures(text)
    # over steps, tokens and time
    assert {name: len(of_axis) for name, of_axis in shown.items() if name.startswith("Cross-entropy")} == {
        "Cross-entropy, nats per target": 3
    }
    assert [text_of(svg)[-1] for svg in shown["Learning rate"]] != []
    axes = [set(text_of(svg)) & {"step", "million tokens", "hours"} for svg in shown["Cross-entropy, nats per target"]]
    assert axes == [{"step"}, {"million tokens"}, {"hours"}]
    for title in (
        "Gradient norm before clipping", "Load balance loss L_B (1 is uniform)", "Router z-loss L_Z, nats²",
        "Tokens that no expert processes, %", "Throughput, tokens/s", "Model FLOPs utilization, %",
        "Peak memory, GiB", "Router entropy, nats",
    ):  # fmt: skip
        assert len(shown[title]) == 3, title
    panels = [text for text in text_of(shown["Router entropy, nats"][0]) if "coder" in text]
    assert panels == ["encoder_1", "encoder_11", "decoder_3"]
    (heatmap,) = (svgs for title, svgs in shown.items() if title == "Load of experts over its mean, sparse")
    assert {"encoder_1", "2.00", "1.00", "0.00"} <= set(text_of(heatmap[0]))
    # what differs, and the figures
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells[cells.index("model.num_experts") :][1:3] == ["4", "0"]
    assert cells[cells.index("validation cross-entropy, nats") :][1:3] == ["4.6", "4.4"]
    assert "unfinished, step 40 of 100" in text


@pytest.mark.usefixtures("over_steps")
def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path):
    rows = [*rows_of(20), {"split": "guard", "step": 20, "decision": "spike", "reason": NASTY}]
    rows[0] |= {f"router_entropy/{NASTY}": 1.0}
    run = write_run(tmp_path / "a", rows, training={"comment": NASTY, NASTY: 1})
    history = read_history(run)
    history.label = NASTY
    text = to_html([history])
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;$x$ &amp; y&quot;)&lt;/script&gt;" in text
    assert re.findall(r'(?:src|href)="(?!data:image/svg)', text) == []
    assert "default-src 'none'" in text
    assert NASTY in text_of(pictures(text)["Router entropy, nats"][0])  # as text, not as a formula or a tag
    for svgs in pictures(text).values():
        for svg in svgs:
            assert "<script" not in svg


@pytest.mark.parametrize(
    ("rows", "tail", "words"),
    [
        ([], "", "No rows of metrics yet."),
        (list(rows_of(30)), '{"split": "train", "step": 40, "cross_en', "unfinished, step 30 of 100"),
        (list(rows_of(30)), '[1]\n"text"\n{}\n{"step": null}\n\n', "unfinished, step 30 of 100"),
        ([{"step": 5, "cross_entropy": None}, {"step": 10, "cross_entropy": 4.0}], "", "In no rows of these runs: "),
        ([row for row in rows_of(10) if row["split"] == "checkpoint"], "", "No rows of metrics yet."),
    ],
)
@pytest.mark.usefixtures("over_steps")
def test_unfinished_damaged_and_old_runs(tmp_path: Path, rows: list[dict[str, Any]], tail: str, words: str):
    text = to_html([read_history(write_run(tmp_path / "a", rows, tail))])
    assert words in text


def test_what_a_roll_back_has_undone_is_not_drawn(tmp_path: Path):
    rows = [*rows_of(30), {"split": "guard", "step": 30, "decision": "roll_back", "rolled_back_to": 10, "reason": "x"}]
    again = [{"split": "train", "step": 20, "cross_entropy": 1.0}]
    history = read_history(write_run(tmp_path / "a", rows + again))
    assert history.points("cross_entropy", "train", by_step(history)) == ([10, 20], [4.9, 1.0])


def test_positions_over_tokens_and_time(tmp_path: Path):
    history = read_history(write_run(tmp_path / "a", list(rows_of(40))))
    assert [by_tokens(history)(step) for step in (0, 20, 25, 99)] == pytest.approx([0, 0.02, 0.025, 0.04])
    assert [by_hours(history)(step) for step in (0, 20, 40)] == pytest.approx([0, 0.02, 0.04])
    empty = read_history(write_run(tmp_path / "b", []))
    assert math.isnan(by_hours(empty)(1))


def test_the_newest_load_of_each_layer(tmp_path: Path):
    rows = [
        {"split": "routing", "step": 1, "load/decoder_1": [1.0, 0.0], "load/encoder_10": [0.5, 0.5]},
        {"split": "routing", "step": 2, "load/encoder_10": [0.25, 0.75], "load/encoder_2": [0.5, None]},
    ]
    loads = newest_loads(read_history(write_run(tmp_path / "a", rows)))
    assert list(loads.items()) == [("encoder_10", [0.25, 0.75]), ("decoder_1", [1.0, 0.0])]


def test_long_curves_keep_their_peaks():
    ys = [0.0] * 100_000
    ys[77_777], ys[12_345] = 9.0, -9.0
    xs, kept = thinned([float(x) for x in range(len(ys))], ys)
    assert len(xs) <= 1000
    assert (xs[kept.index(9.0)], xs[kept.index(-9.0)]) == (77_777, 12_345)
    assert xs == sorted(xs)


@pytest.mark.usefixtures("over_steps")
def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    runs = [write_run(tmp_path / place / "a", list(rows_of(10))) for place in ("one", "two")]
    text = to_html([read_history(run) for run in runs])
    assert f"<th>{runs[0]}</th><th>{runs[1]}</th>" in text


@pytest.mark.usefixtures("over_steps")
def test_a_file_that_is_no_report_is_not_overwritten(tmp_path: Path):
    for content, target in (("my notes", tmp_path / "notes.html"), (None, tmp_path)):
        if content is not None:
            target.write_text(content)
        with pytest.raises(NoRunError, match=r"exists and is no report|it is a folder"):
            check_target(target)
    history = read_history(write_run(tmp_path / "a", []))
    write_page([history], tmp_path / "report.html")
    check_target(tmp_path / "report.html")


def test_the_command(tmp_path: Path):
    run = write_run(tmp_path / "runs" / "a", list(rows_of(20)))
    one = python("-m", "training.report", str(run))
    assert (one.returncode, one.stderr) == (0, "")
    assert f"{run} has not finished: step 20 of 100" in one.stdout
    assert f"Pictures: {run}/report.html" in one.stdout
    assert (run / "report.html").is_file()


@pytest.mark.usefixtures("over_steps")
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "runs" / "a", list(rows_of(20)))
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([str(tmp_path / "empty")], "is no run folder, such as runs/tiny: it has neither config.yaml nor"),
        ([str(run), str(tmp_path / "nothing")], "nothing: no such folder"),
        ([str(run / "config.yaml")], "config.yaml is a file, no folder: name a run folder"),
        ([str(run), "--html", str(run / "config.yaml" / "page.html")], "name another file"),
    ):
        monkeypatch.setattr("sys.argv", ["report", *arguments])
        assert program.main() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert words in said
        assert said.count("\n") == 1


@pytest.mark.usefixtures("over_steps")
def test_several_runs_have_their_page_in_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [write_run(tmp_path / "runs" / name, list(rows_of(10))) for name in ("a", "b")]
    monkeypatch.setattr("sys.argv", ["report", *map(str, runs)])
    assert program.main() == 0
    assert (tmp_path / "runs" / "report.html").is_file()
