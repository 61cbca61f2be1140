"""The comparison of sparse layers runs, and every contender does what it is said to do."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Step, peak_bytes
from benchmarks.moe_cell import make_input
from benchmarks.moe_peers import CONTENDERS, Case, build
from tests.support.launch import python


@pytest.mark.distributed
def test_quick_run_writes_every_row(tmp_path: Path):
    pytest.importorskip("st_moe_pytorch")
    pytest.importorskip("matplotlib")
    done = python("benchmarks/moe_layer.py", "--quick", "--repeats", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "moe_layer_cpu.json").read_text())
    assert len(results["cells"]) == 4
    for cell in results["cells"]:
        assert set(cell["rows"]) == {*CONTENDERS, "limit"}
        assert all(row["seconds"] > 0 for row in cell["rows"].values())
        assert cell["rows"]["limit"]["over_limit"] == 1
    # there and back, forward and backward: E * C rows of 32 floats
    assert results["ranks"]["all_to_all_bytes"] == 4 * 4 * 40 * 32 * 4
    assert (tmp_path / "moe_layer_cpu.png").stat().st_size > 0


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_have_equal_parameters_and_give_all_of_them_a_gradient(name: str):
    if name == "st-moe-pytorch":
        pytest.importorskip("st_moe_pytorch")
    case = Case(256, 4, 32, 48, torch.float32, "cpu")
    module = build(CONTENDERS[name].make, case)
    matrices = sum(p.numel() for p in module.parameters() if p.numel() > 4 * 48)
    assert matrices == pytest.approx(4 * 3 * 32 * 48, rel=0.02)  # biases of st-moe-pytorch are in small vectors
    x = make_input(case, name)
    Step(module, x)()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_peak_memory_of_a_known_step():
    def step() -> None:
        a = torch.empty(1000, 250)
        b = torch.empty(1000, 500)
        del a
        torch.empty(1000, 125)
        del b

    assert peak_bytes(step, "cpu") == 3_000_000
