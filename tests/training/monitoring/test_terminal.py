"""What a run prints: its tables, its lines, and the bar of a terminal."""

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.small import small_config
from training.monitoring.terminal.progress import Progress
from training.monitoring.terminal.tables import end_table, start_table
from training.monitoring.terminal.words import duration, short, size, table
from training.run.folder import RunFolder

ROW = {
    "step": 20, "loss": 5.25, "cross_entropy": 5.125, "tokens_per_second": 12_345.0, "mfu": 0.381,
    "peak_memory_bytes": 1.5 * 2**30, "dropped_fraction": 0.0123,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "steps": 60, "tokens": 300_000, "wall_seconds": 56.4, "validation_cross_entropy": 5.0, "world_size": 2,
    "unigram_cross_entropy": 5.5, "bad_rows": {},
    "validation_cross_entropy_of": {},
    "validation_score_of": {},
    "best": {},
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines logged so far, as they grow."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, keep = logging.getLogger("st_moe"), Keep()
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)


def test_a_log_file_has_one_labeled_line_per_row(lines: list[str]):
    progress = Progress(1200, enabled=True)
    progress.begin(0)
    progress.advance(20)
    progress.row(ROW)
    progress.validation(20, {"cross_entropy": 5.0, "perplexity": 148.41})
    progress.close()
    row, validation = lines
    assert row.startswith(
        "step 20/1200  loss 5.2500   ce 5.1250   tok/s 12.3k  mfu 38.1%  mem 1.5 GiB  drop 1.2%   eta "
    )
    assert validation == "step 20  validation cross-entropy 5.0000, perplexity 148.41"


def test_a_terminal_has_a_table_above_a_bar(lines: list[str], monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = Progress(1200, enabled=True)
    progress.begin(0)
    for step in range(1, 42):
        progress.advance(step)
        progress.row(ROW | {"step": step})
    assert progress.bar is not None
    assert progress.bar.n == 41
    progress.advance(30)  # after a roll-back to step 29
    assert progress.bar.n == 30
    progress.close()
    header, first = lines[:2]
    assert header.split() == ["step", "loss", "ce", "tok/s", "mfu", "mem", "drop", "eta"]
    assert first.split()[:5] == ["1/1200", "5.2500", "5.1250", "12.3k", "38.1%"]
    assert len(header) == len(first)
    assert lines.count(header) == 2
    assert "1200 steps" in terminal.getvalue()


def test_rows_without_figures_of_the_device(lines: list[str]):
    progress = Progress(10, enabled=True)
    progress.row({key: value for key, value in ROW.items() if key not in ("mfu", "peak_memory_bytes")})
    assert lines[0].split()[8:12] == ["mfu", "-", "mem", "-"]


def test_other_ranks_show_nothing(lines: list[str]):
    progress = Progress(10, enabled=False)
    progress.begin(0)
    progress.advance(1)
    progress.row(ROW)
    assert (lines, progress.bar) == ([], None)


@pytest.mark.parametrize("experts", [0, 4])
def test_the_start_table_says_what_will_run(tmp_path: Path, experts: int):
    config = small_config(tmp_path, model={"num_experts": experts}, training={"steps": 8, "micro_batch_size": 2})
    text = start_table(
        config, config.st_moe_config(), step=4, ranks=2, zero_stage=1, tokens_of_sequence=40, memory=2**29,
        peak="1 TFLOP/s (measured)", unigram=5.5, trained=1000,
    )  # fmt: skip
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert "from step 4 on, 8 steps in all" in rows["run"]
    assert rows["model"].endswith("4 + 4 blocks, 2 of them with 4 experts" if experts else "4 + 4 blocks, dense")
    assert "2 ranks, expert-parallel size 1, ZeRO 1, fp32" in rows["layout"]
    assert "8 sequences a step = 2 micro-batches of 2 x 2 ranks; up to 320 tokens a step, 2.56k in all" in rows["batch"]
    assert rows["text"].endswith("runs/data/wikipedia/train/*.json.gz")
    assert "512 MiB" in rows["memory"]
    assert f"tensorboard --logdir {tmp_path}/runs" in rows["watch"]


def test_the_start_table_names_every_source_of_a_mixture(tmp_path: Path):
    mixture = [
        {"name": "a", "weight": 3.0, "files": ["a.jsonl", "b.jsonl"]},
        {
            "name": "b",
            "weight": 1.0,
            "source": "hub",
            "hub_dataset": "one/two",
            "hub_config": None,
            "hub_revision": "0" * 40,
        },
    ]
    config = small_config(tmp_path, data={"mixture": mixture})
    text = start_table(
        config, config.st_moe_config(), step=0, ranks=1, zero_stage=1, tokens_of_sequence=40, memory=0, peak="?",
        unigram=5.5, trained=1000,
    )  # fmt: skip
    assert "3 x a.jsonl and 1 more; 1 x one/two" in text


def test_the_end_table_says_what_was_reached_and_what_follows(tmp_path: Path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    training = {"output_dir": str(tmp_path / "runs"), "name": "a", "steps": 60}
    folder.config_file.write_text(yaml.safe_dump({"training": training}))
    text = end_table(folder, SUMMARY)
    assert "60 steps, 300,000 tokens, in 56 s" in text
    assert "5.0000 nats per target, 0.5000 below the unigram baseline" in text
    assert "train.py --config" in text
    assert "--resume training.steps=120" in text
    assert "skipped" not in text and "domains" not in text
    of_domains = SUMMARY | {"validation_cross_entropy_of": {"code": 4.5, "prose": 5.25}}
    assert re.search("^domains +code 4.5000, prose 5.2500$", end_table(folder, of_domains), re.MULTILINE)
    skipped = end_table(folder, SUMMARY | {"bad_rows": {"empty": 3}})
    assert re.search("^skipped +data lines: 3 empty$", skipped, re.MULTILINE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h 0 min"), (172_799, "48 h 0 min"),
     (172_800, "2 d 0 h"), (270_000, "3 d 3 h"), (float("inf"), "?"), (float("nan"), "?")],
)  # fmt: skip
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_numbers_with_units():
    assert [short(n) for n in (0, 999, 1_000, 12_345, 123_456, 6_000_180, 2.5e9)] == [
        "0", "999", "1.00k", "12.3k", "123k", "6.00M", "2.50G"
    ]  # fmt: skip
    assert [size(n) for n in (0, 2**20, 2**30, 80 * 2**30)] == ["0 MiB", "1 MiB", "1.0 GiB", "80.0 GiB"]
    assert table({"a": "b", "long": "c", "none": ""}) == "a     b\nlong  c"
