"""``plan.py`` as users start it: its table, JSON and picture, and its mistakes, each in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import plan
from common.project import ROOT
from tests.support.launch import python
from tests.support.small import small_config
from training.config.errors import ConfigError
from training.planning.display.table import PARTS
from training.planning.times import rate_of
from training.run.folder import RunFolder

CONFIG = ("plan.py", "--config", "configs/st_moe_l.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--gpus", "12"],
            "--gpus 12 is not a multiple of the 8 GPUs of a node: set --gpus 8 or 16, or another --gpus-per-node",
        ),
        (["--gpus", "8", "--card", "h1000"], "--card h1000: no such card; did you mean h100-80gb"),
        (
            ["--gpus", "8", "training.global_batch_size=2047"],
            "training.global_batch_size = 2047 is not divisible by training.micro_batch_size x --gpus = 32 x 8",
        ),
        (["--gpus", "8", "--mfu", "40"], "--mfu 40: a share of the peak"),
        (["--gpus", "8", "--mfu-from", "runs/none"], "--mfu-from runs/none: no such run folder"),
        (["--gpus", "8", "--json", "training.steps=5"], "write overrides before --json"),
        (["--gpus", "8", "--picture", "plan.txt"], "--picture plan.txt: must end in .png"),
        (["--gpus", "8", "--reserve", "inf"], "--reserve inf"),
        (["--gpus", "8", "parallel.all_to_all_chunks=3"], "parallel.all_to_all_chunks = 3 does not divide"),
    ],
)
def test_mistakes(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*CONFIG, *arguments])
    with pytest.raises(ValueError, match=re.escape(words)) as mistake:
        plan.plan_of(plan.parse_arguments())
    assert "\n" not in str(mistake.value)


def test_a_config_that_is_not_there():
    ended = python("plan.py", "--config", "configs/st_moe_ll.yaml", "--gpus", "8")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: ")
    assert "did you mean configs/st_moe_l.yaml?" in ended.stderr
    assert not ended.stdout


def test_a_layout_that_does_not_fit_says_what_is_missing():
    ended = python(*CONFIG, "--gpus", "8", "training.micro_batch_size=64", "--card", "a10", "--json")
    row = json.loads(ended.stdout)
    missing = row["memory"]["missing_bytes"]
    assert ended.returncode == 2
    assert not row["fits"]
    assert missing == row["memory"]["needed_bytes"] - row["memory"]["card_bytes"]
    assert f"{missing / 2**30:,.1f} GiB more than the 22.5 GiB of a10" in ended.stderr
    assert "training.activation_checkpointing = true" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_every_figure_and_a_picture(tmp_path: Path):
    files = tmp_path / "plan.json", tmp_path / "plan.png"
    ended = python(*CONFIG, "--gpus", "8", "--json", str(files[0]), "--picture", str(files[1]))
    assert ended.returncode == 0, ended.stderr
    assert "4,105,444,352 parameters, 991,173,632 active per token" in ended.stdout
    row = json.loads(files[0].read_text())
    moments = row["memory"]["moments_bytes"]
    for parts in moments.values():
        assert sum(size for part, size in parts.items() if part != "total") == parts["total"]
        assert f"{parts['total'] / 2**30:.2f}" in ended.stdout
        assert parts.keys() <= PARTS.keys() | {"total"}
    assert max(parts["total"] for parts in moments.values()) == row["memory"]["needed_bytes"]
    assert row["parameters"]["total"] == 4_105_444_352
    with Image.open(files[1]) as picture:
        assert picture.width > 800
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}  # type: ignore[union-attr]
        assert (0x2C, 0xA0, 0x2C) in colors  # activations


def test_the_rate_of_a_run_is_the_median_that_it_measured(tmp_path: Path):
    config = small_config(tmp_path, training={"name": "measured", "activation_checkpointing": True})
    folder = RunFolder(config.run_dir)
    folder.path.mkdir(parents=True)
    folder.write_config(config)
    with pytest.raises(ConfigError, match="has the column mfu"):
        plan.measured_rate(folder.path)
    folder.metrics_file.write_text("".join(json.dumps({"mfu": mfu}) + "\n" for mfu in (0.3, None, 0.1, 0.2)))
    assert plan.measured_rate(folder.path) == pytest.approx(rate_of(config, 0.2))
    assert rate_of(config, 0.2) > 0.2


def test_a_plan_needs_no_torch():
    code = "import sys, plan; plan.main(); assert not {'torch', 'deepspeed', 'transformers'} & sys.modules.keys()"
    arguments = [sys.executable, "-c", code, *CONFIG[1:], "--gpus", "8"]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_a_search_lists_layouts_as_a_table_or_as_json(tmp_path: Path):
    words = ("plan.py", "--config", "configs/dense_l.yaml", "--gpus", "512", "--search")
    file = tmp_path / "layouts.json"
    ended = python(*words, "--json", str(file))
    assert ended.returncode == 0, ended.stderr
    row = json.loads(file.read_text())
    assert f"512 GPUs (h100-80gb of 79.6 GiB): {len(row['fits'])} of {row['tried']} layouts fit" in ended.stdout
    best = row["fits"][0]
    assert sum(best["peak_bytes"].values()) == best["needed_bytes"]
    assert f"best: {' '.join(best['overrides'])}" in ended.stdout
    assert best["needed_bytes"] <= row["card"]["memory_mib"] << 20
    assert best["layout"]["micro_batch_size"] * best["layout"]["accumulation"] * 512 == 2048


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "3"], "training.global_batch_size = 2048 is not divisible by 3 GPUs: set a multiple of 3"),
        (["--gpus", "8", "--picture", "plan.png"], "--picture draws one layout, and --search lists many"),
    ],
)
def test_a_mistake_in_a_search_is_one_line(arguments: list[str], words: str):
    ended = python(*CONFIG, "--search", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr


def test_a_search_that_finds_nothing_says_what_is_missing():
    ended = python("plan.py", "--config", "configs/t5_xxl.yaml", "--gpus", "8", "--card", "l4", "--search")
    assert ended.returncode == 2
    assert "too large:" in ended.stdout
    assert ended.stderr.count("\n") == 1
    assert "no layout of 8 GPUs fits l4: the nearest, ZeRO 3, EP 1, lacks at least" in ended.stderr
