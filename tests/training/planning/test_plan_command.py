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
from training.config.run import load_config
from training.planning.cards import find_card
from training.planning.display.table import PARTS, text
from training.planning.search.table import text as search_text
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
        (
            ["--gpus", "4", "--gpus-per-node", "3"],
            "--gpus 4 is not a multiple of the 3 GPUs of a node: set --gpus 3 or 6",
        ),
        (["--gpus", "8", "--card", "h1000"], "--card h1000: no such card; did you mean h100-80gb"),
        (
            ["--gpus", "8", "training.global_batch_size=2047"],
            "training.global_batch_size = 2047 is not divisible by training.micro_batch_size x --gpus = 32 x 8",
        ),
        (  # no number of ranks that is a multiple of 8 divides 100
            ["--gpus", "8", "training.global_batch_size=100"],
            "training.micro_batch_size x --gpus = 32 x 8: set a multiple of 256$",
        ),
        (
            ["--gpus", "8", "training.global_batch_size=100", "parallel.expert_parallel_size=1"],
            "multiple of 256, or --gpus 5 with training.micro_batch_size=20 or 10 with training.micro_batch_size=10$",
        ),
        (["--gpus", "8", "--mfu", "40"], "--mfu 40: a share of the peak"),
        (["--gpus", "8", "--mfu-from", "runs/none"], "--mfu-from runs/none: no such folder in "),
        (["--gpus", "8", "--mfu-from", "configs"], "--mfu-from configs is no run folder, it has no config.yaml"),
        (["--gpus", "8", "--json", "none/x.json"], "--json none/x.json: there is no folder none in "),
        (["--gpus", "8", "--picture", "none/x.png"], "--picture none/x.png: there is no folder none in "),
        (["--gpus", "8", "--reserve", "100"], "--reserve 100: GiB of h100-80gb, 0 or more and less than its 79.6 GiB"),
        (["--gpus", "8", "--reserve", "nan"], "--reserve nan: GiB of h100-80gb"),
        (
            ["--gpus", "10000", "--gpus-per-node", "100", "parallel.expert_parallel_size=1"],
            "multiple of 320000, or --gpus 64 (with training.micro_batch_size=1 up to 2048)",
        ),
        (["--gpus", "8", "--json", "training.steps=5"], "write overrides before --json"),
        (["--gpus", "8", "--picture", "plan.txt"], "--picture plan.txt: must end in .png"),
        (["--gpus", "8", "--reserve", "inf"], "--reserve inf"),
        (["--gpus", "8", "parallel.all_to_all_chunks=3"], "parallel.all_to_all_chunks = 3 does not divide"),
    ],
)
def test_mistakes(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*CONFIG, *arguments])
    with pytest.raises(ValueError, match=re.escape(words).replace(r"\$", "$")) as mistake:
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
    assert "training.activation_checkpointing=true" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_every_figure_and_a_picture(tmp_path: Path):
    files = tmp_path / "plan.json", tmp_path / "plan.png"
    ended = python(*CONFIG, "--gpus", "8", "--json", str(files[0]), "--picture", str(files[1]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "".join(f"wrote {file}\n" for file in files)
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


@pytest.fixture
def measured(tmp_path: Path) -> RunFolder:
    """A run in fp32 that recomputes."""
    config = small_config(tmp_path, training={"name": "measured", "activation_checkpointing": True})
    folder = RunFolder(config.run_dir)
    folder.path.mkdir(parents=True)
    folder.write_config(config)
    return folder


def write_rows(folder: RunFolder, peak: float, *rates: float | None) -> None:
    rows = [{"mfu": rate, "peak_tflops": peak} for rate in rates]
    folder.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_rate_of_a_run_is_the_median_that_it_measured(measured: RunFolder):
    card, config = find_card("h100-80gb"), load_config(measured.config_file)
    with pytest.raises(ConfigError, match=r"the run has measured no MFU: no row of its metrics.jsonl has one"):
        plan.measured_rate(measured.path, card)
    write_rows(measured, 66.9, 0.3, None, 0.1, 0.2)
    with measured.metrics_file.open("a") as file:
        file.write('{"mfu": "0.9"}\n{"mfu": 1.7}\n')  # no shares of a peak
    rate, warnings = plan.measured_rate(measured.path, card)
    assert (rate, warnings) == (pytest.approx(rate_of(config, 0.2)), [])
    assert rate_of(config, 0.2) > 0.2
    with pytest.raises(
        ConfigError, match=f"is no run folder, it has no config.yaml: name one, such as {measured.path}$"
    ):
        plan.measured_rate(measured.path.parent, card)


@pytest.mark.parametrize(("peak", "device"), [(19.5, "a100-80gb or a100-40gb"), (0.12, "another device")])
def test_a_run_on_another_device_is_told(
    peak: float, device: str, measured: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    write_rows(measured, peak, 0.2)
    words = ["--config", str(measured.config_file), "--gpus", "1", "--mfu-from", str(measured.path)]
    monkeypatch.setattr(sys, "argv", ["plan.py", *words])
    arguments = plan.parse_arguments()
    wanted = (
        f"--mfu-from {measured.path} was measured on {device}, whose peak in fp32 is {peak:g} TFLOP/s, and this plan "
        "is for h100-80gb with 66.9: it may reach another share of its peak"
    )
    planned = plan.plan_of(arguments)
    assert planned.warnings[0] == wanted
    assert f"warning: {wanted}\n" in text(planned)
    found = plan.search_of(arguments)
    assert found.warnings == (wanted,)
    assert search_text(found).endswith(f"warning: {wanted}")


def test_one_layout_has_one_time(monkeypatch: pytest.MonkeyPatch):
    """A plan, and a search that holds all of the plan's layout."""
    words = ["training.deepspeed_config=ds_configs/zero1.json", "training.micro_batch_size=4",
             "training.activation_checkpointing=true", "parallel.expert_parallel_size=2"]  # fmt: skip
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan.py", "--config", "configs/tiny.yaml", "--gpus", "4", *words])
    arguments = plan.parse_arguments()
    planned, found = plan.plan_of(arguments), plan.search_of(arguments)
    assert found.fixed == words
    (only,) = found.fits
    assert only.layout == planned.layout
    assert only.times == planned.times
    assert planned.times.step > planned.times.launches > planned.times.compute


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
        (
            ["--gpus", "3"],
            "training.global_batch_size = 2048 is not divisible by --gpus 3: set a multiple of 3, or --gpus 2 or 4",
        ),
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
    ended = python("plan.py", "--config", "configs/t5_xxl.yaml", "--gpus", "4", "--card", "l4", "--search")
    assert ended.returncode == 2
    assert "too large:" in ended.stdout
    assert ended.stderr.count("\n") == 1
    assert "no layout of 4 GPUs fits l4: the nearest, ZeRO 3, EP 1, micro-batch 1, recomputation, lacks" in ended.stderr
