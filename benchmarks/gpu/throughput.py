"""Steps 7 and 10: st_moe_l with one rank's share of experts, by micro-batch: speed, memory, launches, share of peak."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.accounting import FORMULA, Marks, profile
from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from benchmarks.measure import matmul_flops_per_second
from common.project import ROOT
from data.span_corruption import raw_and_target_lengths
from model.config import StMoeConfig
from model.draws.distributions import fill
from model.flops import forward_flops
from model.initialization import draws_of
from parallel.materialization import Named
from training.config.run import RunConfig, load_config
from training.config.training import TrainingConfig
from training.engine import build
from training.monitoring.monitors.peaks import data_sheet_peak

PHASES = ("forward", "backward", "step")
TOY = ("model.d_model=64", "model.d_ff=128", "model.d_kv=16", "model.num_heads=4", "model.num_layers=4",
       "model.vocab_size=512", "data.inputs_length=48")  # fmt: skip
TARGET_MFU = 0.45  # of the layers at the largest micro-batch, compiled


def make_config(setting: Setting, *overrides: str) -> RunConfig:
    """Return st_moe_l's configuration with four experts, as each of eight ranks holds; one rank, one micro-batch."""
    values = [
        "model.num_experts=4", "parallel.expert_parallel_size=1", "training.global_batch_size=4",
        "training.micro_batch_size=4", "training.eval_examples=4",
        f"training.deepspeed_config={ROOT / 'ds_configs' / 'zero1.json'}",
        f"training.output_dir={setting.scratch / 'runs'}",
    ]  # fmt: skip
    return load_config(ROOT / "configs" / "st_moe_l.yaml", [*values, *(TOY if setting.toy else ()), *overrides])


@contextmanager
def drawn_on_device() -> Iterator[None]:
    """Draw initial weights on the device: on the CPU the numbers of a billion weights take half a minute."""

    def initializer(config: StMoeConfig, seed: int, *_: Any) -> Callable[[list[Named]], None]:
        def draw(modules: list[Named]) -> None:
            for one in (one for name, module in modules for one in draws_of(name, module, config, seed)):
                fill(one.target, one.distribution, None)

        return draw

    with patch.object(build, "initializer", initializer):
        yield


def make_engine(config: RunConfig, setting: Setting) -> Any:
    """Build the engine of a configuration on this device, in training mode."""
    torch.manual_seed(0)
    with drawn_on_device():
        return build.build_engine(config, 1, setting.device)


def make_batch(config: RunConfig, sequences: int, setting: Setting) -> dict[str, Tensor]:
    """Draw full sequences of random tokens: ``input_ids [B, L]`` and ``labels [B, M]``, as long as the run's."""
    inputs = config.data.inputs_length
    _, targets = raw_and_target_lengths(inputs, 0.15, 3.0)
    generator = torch.Generator().manual_seed(sequences)
    shapes = {"input_ids": (sequences, inputs), "labels": (sequences, targets)}
    return {
        name: torch.randint(2, config.architecture().vocab_size, shape, generator=generator).to(setting.device)
        for name, shape in shapes.items()
    }


class Phases:
    """A step of an engine on one batch, in three phases that follow each other."""

    def __init__(self, engine: Any, batch: dict[str, Tensor]):
        self.engine, self.batch = engine, batch
        self.loss: Tensor | None = None

    def forward(self) -> None:
        """Compute the loss."""
        self.loss = self.engine(**self.batch).loss

    def backward(self) -> None:
        """Compute the gradients, and reduce them."""
        self.engine.backward(self.loss)

    def step(self) -> None:
        """Update the weights."""
        self.engine.step()


def time_phases(phases: Phases, repeats: int, setting: Setting) -> dict[str, float]:
    """Return the median seconds of each phase, and of the whole; the device is not waited for in between."""
    marks, found = Marks(setting.device), []
    for repeat in range(-3, repeats):
        points = [marks.mark()]
        for name in PHASES:
            getattr(phases, name)()
            points.append(marks.mark())
        if repeat >= 0:
            found.append(points)
    seconds = {
        name: median(marks.between(points[i], points[i + 1]) for points in found) for i, name in enumerate(PHASES)
    }
    return seconds | {"whole": median(marks.between(points[0], points[3]) for points in found)}


def measure_cell(
    engine: Any, config: RunConfig, sequences: int, setting: Setting, peaks: dict[str, Any]
) -> dict[str, Any]:
    """Measure one size of micro-batch."""
    batch = make_batch(config, sequences, setting)
    phases = Phases(engine, batch)
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = time_phases(phases, setting.pick(10, 1), setting)
    memory = torch.cuda.max_memory_allocated() if setting.cuda else None
    (_, inputs), (_, targets) = batch["input_ids"].shape, batch["labels"].shape
    flops = forward_flops(config.st_moe_config(), sequences, inputs, targets).training()
    both = seconds["forward"] + seconds["backward"]
    cell: dict[str, Any] = {
        "tokens_per_second": sequences * (inputs + targets) / both,
        "tokens_per_second_with_step": sequences * (inputs + targets) / seconds["whole"],
        "peak_bytes": memory,
        "flops": flops,
        "tflops": flops / both / 1e12,
        "loss": float(phases.loss) if phases.loss is not None else None,
        "seconds": seconds,
    }
    cell |= {f"mfu_{name}": flops / both / peak for name, peak in peaks.items() if peak}
    profiles = {}
    for name in PHASES:
        trace = None
        if setting.traces is not None and sequences in (setting.pick(4, 4), setting.pick(32, 4)) and name != "step":
            trace = setting.traces / f"trace_{sequences}_{name}.json.gz"
        profiles[name] = profile(getattr(phases, name), setting.device, trace)
    launches = {name: found["launches"] for name, found in profiles.items()}
    busy = sum(profiles[name]["busy_seconds"] for name in ("forward", "backward"))
    return cell | {"launches": launches, "busy_share": busy / both, "profiles": profiles}


def measure_all(setting: Setting, report: Report, *overrides: str) -> dict[int, dict[str, Any]]:
    """Measure every micro-batch that fits; return the cells."""
    dtype = torch.bfloat16
    peaks = {
        "assumed": data_sheet_peak(torch.cuda.get_device_name(), dtype) if setting.cuda else None,
        "gemm": matmul_flops_per_second(setting.device, dtype, setting.pick(8192, 128)),
    }
    report.value("peaks, TFLOP/s", {name: peak and peak / 1e12 for name, peak in peaks.items()})
    report.value("FLOPs", FORMULA)
    config = make_config(setting, *overrides)
    engine = make_engine(config, setting)
    report.value("parameters", sum(p.numel() for p in engine.module.parameters()))
    cells = {}
    for sequences in setting.pick((32, 4), (2,)):  # the larger is the target's
        with report.part(f"micro-batch {sequences}"):
            report.require(setting.pick(10, 0))
            cells[sequences] = cell = measure_cell(engine, config, sequences, setting, peaks)
            profiles = cell.pop("profiles")
            report.value(f"micro-batch {sequences}", cell)
            report.value(f"profiles, {sequences}", profiles)
            launches, milliseconds = cell["launches"], {k: v * 1e3 for k, v in cell["seconds"].items()}
            report.value(f"ms, launches, {sequences}", milliseconds | {f"{k} launches": v for k, v in launches.items()})
            shares = {
                key: cell[key] for key in ("mfu_assumed", "mfu_gemm", "busy_share", "tokens_per_second") if key in cell
            }
            report.value(f"shares, {sequences}", shares)
            loss = cell["loss"]
            report.check(f"micro-batch {sequences}: loss is finite", loss, "finite", loss == loss)
    return cells


def measure_throughput(setting: Setting, report: Report) -> None:
    """Step 7: without compilation."""
    measure_all(setting, report)


def measure_compiled(setting: Setting, report: Report) -> None:
    """Step 10: with ``training.compile``, if this version has it."""
    if "compile" not in TrainingConfig.model_fields:
        report.value("training.compile", "this version has no such key")
        return
    cells = measure_all(setting, report, "training.compile=true")
    if setting.cuda and cells:
        sequences = max(cells)
        share = cells[sequences].get("mfu_assumed", 0.0)
        report.check(f"micro-batch {sequences}: MFU", share, f">= {TARGET_MFU}", share >= TARGET_MFU)
