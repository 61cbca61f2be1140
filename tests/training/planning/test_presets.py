"""The layouts of the paper's models: that they fit, that the search finds them, and that the page shows them."""

import pytest

from common.project import ROOT
from training.config.run import load_config
from training.planning.cards import find_card
from training.planning.layout import Layout
from training.planning.plan import make_plan
from training.planning.search.find import search
from training.planning.search.table import text

H100 = find_card("h100-80gb")
# The GPUs that each preset's comment names.
PRESETS = {
    "dense_l": 64, "dense_xl": 64, "t5_xxl": 64, "st_moe_base": 8, "st_moe_l": 64, "st_moe_xl": 64, "st_moe_32b": 64,
    "switch_xxl": 128, "switch_c": 512,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_gpus_that_it_names(name: str):
    gpus, file = PRESETS[name], ROOT / "configs" / f"{name}.yaml"
    assert f"# Layout: of {gpus} H100s (80 GB), by " in file.read_text(encoding="utf-8")
    plan = make_plan(config := load_config(file), Layout.of(config, gpus), H100)
    assert plan.fits
    assert plan.needed < 0.9 * plan.card.memory


@pytest.mark.long
@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_layout_is_the_one_that_the_search_finds(name: str):
    config, gpus = load_config(ROOT / "configs" / f"{name}.yaml"), PRESETS[name]
    assert search(config, gpus, H100).fits[0].layout == Layout.of(config, gpus)


def test_the_page_shows_a_search_that_finds_the_presets_layout():
    config, gpus = load_config(ROOT / "configs" / "t5_xxl.yaml"), PRESETS["t5_xxl"]
    found = search(config, gpus, H100)
    assert found.fits[0].layout == Layout.of(config, gpus)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"python plan.py --config configs/t5_xxl.yaml --gpus {gpus} --search\n" in page
    assert f"```text\n{text(found)}\n```" in page


@pytest.mark.parametrize("name", PRESETS)
def test_the_figures_on_the_page_are_those_of_the_plan(name: str):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page_row(name) in page


def page_row(name: str) -> str:
    """The model's row of the table in docs/models.md."""
    config, gpus = load_config(ROOT / "configs" / f"{name}.yaml"), PRESETS[name]
    plan = make_plan(config, Layout.of(config, gpus), H100)
    layout, size = plan.layout, plan.layout.expert_parallel_size
    words = [
        f"ZeRO {layout.zero_stage}",
        *([f"EP {size}"] if size > 1 else []),
        f"micro-batch {layout.micro_batch_size}",
    ]
    words += ["recomputation"] if layout.recompute else []
    cells = [
        f"`{name}.yaml`", f"{plan.parameters.total / 1e9:,.2f}", f"{plan.parameters.active / 1e9:.2f}",
        f"{plan.flops.forward_of_example / 1e12:.2f}", str(gpus), ", ".join(words), f"{plan.needed / 2**30:.1f}",
        f"{plan.times.step:.3f}", f"{plan.steps:,}", f"{plan.times.days:.1f}", f"{plan.checkpoint.bytes / 1e9:,.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
