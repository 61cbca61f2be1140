"""The pieces of TensorBoard's folder: records, pictures, texts, the layout, rows that stand, a disk that is full."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as reference_crc32c
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as reference_masked_crc32c

from training.monitoring import appending
from training.monitoring.appending import GrowingFile
from training.monitoring.columns import COLUMNS, GUARD, ROUTING, SPLITS, TRAIN, VALIDATION
from training.monitoring.standing import standing_rows
from training.monitoring.tensorboard.board import Board
from training.monitoring.tensorboard.layout import LAYOUT
from training.monitoring.tensorboard.pictures import HIGH, LOW, MIDDLE, color, heatmap, histogram
from training.monitoring.tensorboard.records import crc32c, masked_crc32c
from training.monitoring.tensorboard.summaries import MOST_PIECES, escaped, of_example, of_row
from training.monitoring.writer import MetricsWriter
from training.run.folder import RunFolder


@given(st.binary(max_size=3000))
def test_the_checksum_is_that_of_tensorboard(data: bytes):
    assert crc32c(data) == reference_crc32c(data)
    assert masked_crc32c(data) == reference_masked_crc32c(data)


def test_the_checksum_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(1 << 16)) == reference_crc32c(bytes(1 << 16))


def known_tags() -> list[str]:
    """A tag of every declared column."""
    tags = [f"{split}/{column}" for column in COLUMNS for split in column.splits]
    tags = [re.sub("<layer>", "encoder_1", re.sub("<(family|source)>", "router", tag)) for tag in tags]
    return [*tags, *(f"tokens/{split}/{name}" for split in (TRAIN, VALIDATION) for name in ("loss", "cross_entropy"))]


@pytest.mark.parametrize("title", list(LAYOUT))
def test_every_line_of_the_first_page_is_a_declared_column(title: str):
    tags = known_tags()
    for chart, patterns in LAYOUT[title].items():
        for pattern in patterns:
            assert any(re.match(pattern, tag) for tag in tags), (chart, pattern)
    titles = [chart for charts in LAYOUT.values() for chart in charts]
    assert len(set(titles)) == len(titles), "TensorBoard merges charts of one title"


def test_the_color_of_a_load_tells_too_little_from_too_much():
    assert (color(1.0), color(0.0), color(1 / 8), color(8.0), color(100.0)) == (MIDDLE, LOW, LOW, HIGH, HIGH)
    assert color(2.0)[0] > color(0.5)[0]
    assert color(float("nan")) not in (LOW, HIGH, MIDDLE)


@pytest.mark.parametrize("experts", [1, 8, 128, 512])
def test_the_heatmap_has_a_line_per_layer_and_a_column_per_expert(experts: int):
    load = {"encoder_1": [0.0] * (experts - 1) + [1.0], "decoder_3": [1 / experts] * experts}
    picture = heatmap("routing/load", "load", load).image
    image = Image.open(io.BytesIO(picture.encoded_image_string)).convert("RGB")
    assert image.size == (picture.width, picture.height)
    assert image.width <= 2600
    colors = [(r, g, b) for r, g, b in zip(*[iter(image.tobytes())] * 3, strict=True)]
    uniform = colors.count(MIDDLE)
    assert uniform >= 4 * experts * 10, "the uniform layer is white"
    if experts > 1:
        assert colors.count(LOW) > (experts - 1) * 4 * 10, "the dead experts are blue"
        assert colors.count(HIGH) > 40


def test_the_histogram_keeps_every_count():
    proto = histogram("routing/probabilities/encoder_1", [3, 0, 0, 5]).histo
    assert (list(proto.bucket_limit), list(proto.bucket), proto.num) == ([0.25, 0.5, 0.75, 1.0], [3, 0, 0, 5], 8)
    assert (proto.min, proto.max, proto.sum) == (0.0, 1.0, 3 * 0.125 + 5 * 0.875)


ROUTING_ROW = {
    "split": ROUTING,
    "step": 4,
    "time": 1.0,
    "load/encoder_1": [0.5, 0.5],
    "probabilities/encoder_1": [1, 2],
}


def test_pictures_of_routing_can_be_switched_off():
    assert [value.tag for value in of_row(ROUTING_ROW, pictures=True)] == [
        "routing/load",
        "routing/probabilities/encoder_1",
    ]
    assert list(of_row(ROUTING_ROW, pictures=False)) == []


def test_an_example_is_shown_as_it_is_and_cut_where_it_is_long():
    pieces = [f"_{n}|" for n in range(MOST_PIECES + 3)]
    row = {
        "example": 2, "input": "a <extra_id_0> *b*", "target": "<extra_id_0> c", "prediction": "# d", "correct": 0.5,
        "pieces": {"encoder": pieces, "decoder": ["<pad>"]},
        "experts": {"encoder_1": [[1, 0]] * len(pieces), "encoder_3": [[]] * len(pieces), "decoder_1": [[3]]},
    }  # fmt: skip
    value = of_example(row)
    markdown = value.tensor.string_val[0].decode()
    assert value.tag == "examples/2"
    assert "a &lt;extra\\_id\\_0&gt; \\*b\\*" in markdown
    assert "| \\_0\\| | 1, 0 | - |" in markdown
    assert f"the first {MOST_PIECES} of {len(pieces)} pieces" in markdown
    assert f"\\_{MOST_PIECES}\\|" not in markdown
    assert "| &lt;pad&gt; | 3 |" in markdown
    assert escaped("a\nb") == "a b"


def test_rows_of_undone_steps_do_not_stand_and_the_guards_do(tmp_path: Path):
    def row(split: str, step: int, **more: Any) -> dict[str, Any]:
        return {"split": split, "step": step, "time": 1.0, **more}

    undone = [row(TRAIN, 3), row(VALIDATION, 3), row("checkpoint", 3)]
    spike, back = row(GUARD, 3), row(GUARD, 3, rolled_back_to=2)
    again = [row(TRAIN, 3), row(TRAIN, 4), row(GUARD, 4, rolled_back_to=1)]
    written = [row(TRAIN, 1), row(TRAIN, 2), *undone, spike, back, *again, row(TRAIN, 2)]
    stands = [row(TRAIN, 1), spike, back, again[-1], row(TRAIN, 2)]
    lines = [json.dumps(found).encode() + b"\n" for found in written]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:5]))
    assert list(standing_rows(tmp_path / "metrics.jsonl", b"".join(lines[5:]) + b'{"step": 9')) == stands
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:7]))
    assert list(standing_rows(tmp_path / "metrics.jsonl")) == [row(TRAIN, 1), row(TRAIN, 2), spike, back]
    assert list(standing_rows(tmp_path / "missing")) == []


def points(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)]


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file: Any, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return int(written)

    def close(self) -> None:
        self.file.close()


def test_what_a_full_disk_refuses_is_shown_when_there_is_room(tmp_path: Path):
    run = RunFolder(tmp_path)
    writer = MetricsWriter(run, enabled=True)
    writer.write({"step": 1, "loss": 1.0})
    event_file = writer.board.file
    assert event_file is not None
    growing = (writer.file, event_file._file)
    whole = [file._file for file in growing]
    for file in growing:
        file._file = Full(file._file, 30)  # type: ignore[assignment]
    for step in (2, 3):
        writer.write({"step": step, "loss": 1.0})
    assert points(run.tensorboard, "train/loss") == [1], "no part of a record"
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1]
    for file, good in zip(growing, whole, strict=True):
        file._file = good
    writer.write({"step": 4, "loss": 1.0})
    writer.close()
    assert points(run.tensorboard, "train/loss") == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_point_that_a_kill_left_out_is_there_after_the_resume(tmp_path: Path):
    """The event is written after the row: a kill between the two."""
    run = RunFolder(tmp_path)
    writer = MetricsWriter(run, enabled=True)
    writer.write({"step": 1, "loss": 1.0})
    size = writer.nbytes
    writer.board.close()
    writer.write({"split": "checkpoint", "step": 1, "save_seconds": 1.0})
    writer.close()
    MetricsWriter(run, enabled=True, resume_step=1, resume_bytes=size).close()
    assert points(run.tensorboard, "train/loss") == [1]
    assert points(run.tensorboard, "checkpoint/save_seconds") == [1]


def test_event_files_of_one_second_are_read_in_the_order_in_which_they_were_made(tmp_path: Path):
    names = []
    for step in range(3):
        board = Board(tmp_path, {})
        board.begin([{"split": "train", "step": step, "time": 1.0, "loss": 0.0}])
        board.close()
        (found,) = (file for file in tmp_path.iterdir() if file.stat().st_size)
        names.append(found.name)
        assert len(list(tmp_path.iterdir())) <= 2, "what was emptied is removed the next time"
    assert names == sorted(set(names))
    assert points(tmp_path, "train/loss") == [2]


def test_a_growing_file_writes_at_its_end_what_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = GrowingFile(tmp_path / "rows")
    good, file._file = file._file, Full(None, 0)  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        warnings: list[str] = []
        patch.setattr(appending.logger, "warning", lambda *arguments: warnings.append(str(arguments)))
        file.append(b"a\n")
        file.append(b"b\n")
    assert len(warnings) == 1, "not one for each row"
    assert file.waiting == b"a\nb\n"
    file._file = good
    file.close()
    assert (tmp_path / "rows").read_bytes() == b"a\nb\n"


def test_rows_of_older_runs_are_shown_after_a_resume(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.metrics_file.write_text('{"step": 1, "loss": 2.0}\n')
    MetricsWriter(run, enabled=True, resume_step=1, resume_bytes=run.metrics_file.stat().st_size).close()
    assert points(run.tensorboard, "train/loss") == [1]


def test_every_split_has_a_title():
    assert {split for column in COLUMNS for split in column.splits} <= SPLITS.keys()
