"""Step 11: the memory that ``plan.py`` gives against the card's, for ST-MoE-base and four blocks of st_moe_l."""

from typing import Any

import torch

from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.throughput import TOY, Phases, make_batch, make_engine
from benchmarks.gpu.updates import free
from benchmarks.measure import peak_bytes
from common.project import ROOT
from common.strict_json import to_json
from training.config.run import RunConfig, load_config
from training.planning.activations import activations_of
from training.planning.layout import Layout
from training.planning.plan import moments_of
from training.planning.states import states_of

MODELS = {"st_moe_base": (), "st_moe_l": ("model.num_layers=4",)}
NEAR = 0.08
NEAR_IN_REHEARSAL = 0.2  # of tensors so small that what operations allocate inside themselves counts
TOY_BUCKET = 100_000  # elements: DeepSpeed's default would be nearly all that a toy allocates
WARM, MEASURED = 2, 3  # steps; one each in the rehearsal


def make_config(setting: Setting, name: str) -> RunConfig:
    """Return a model's configuration on one rank, ZeRO 1, with one micro-batch of four."""
    options = {"zero_optimization": {"stage": 1} | ({"reduce_bucket_size": TOY_BUCKET} if setting.toy else {})}
    file = setting.scratch / "memory.json"
    file.write_text(to_json(options), encoding="utf-8")
    values = [
        "parallel.expert_parallel_size=1", "training.micro_batch_size=4", "training.global_batch_size=4",
        "training.eval_examples=4", f"training.deepspeed_config={file}",
        f"training.output_dir={setting.scratch / 'runs'}", *MODELS[name],
    ]  # fmt: skip
    return load_config(ROOT / "configs" / f"{name}.yaml", [*values, *(TOY if setting.toy else ())])


def planned(config: RunConfig, setting: Setting) -> dict[str, int]:
    """Return what a plan gives: bytes between steps, when the loss is known beside that, and at most by phase."""
    layout = Layout.of(config, 1)
    states, activations = states_of(config, layout), activations_of(config, layout, device=setting.pick("gpu", "cpu"))
    *backward, step = moments_of(states, activations)
    return {
        "kept": states.kept,
        "saved": activations.saved,
        "backward": max(moment.total for moment in backward),
        "step": step.total,
    }


def measured_on_cuda(phases: Phases, others: int) -> dict[str, int]:
    """Run a step; return ``planned``'s figures of the card, less ``others``, the bytes before the engine."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    phases.forward()
    saved = torch.cuda.memory_allocated() - before
    phases.backward()
    torch.cuda.synchronize()
    backward = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    phases.step()
    torch.cuda.synchronize()
    step = torch.cuda.max_memory_allocated()
    return {"kept": before - others, "saved": saved, "backward": backward - others, "step": step - others}


def measured_on_cpu(phases: Phases, kept: int) -> dict[str, int]:
    """Run a step; a CPU tells what is allocated, but not what was before: ``kept`` is taken as planned."""

    def both() -> None:
        phases.forward()
        phases.backward()

    found = {"backward": kept + peak_bytes(both, "cpu")}
    phases.step()
    return found


def check_memory(setting: Setting, report: Report) -> None:
    """Compare each model's plan with the steps of an engine."""
    near = setting.pick(NEAR, NEAR_IN_REHEARSAL)
    for name in setting.pick(list(MODELS), ["st_moe_l"]):
        with report.part(name):
            report.require(setting.pick(8, 0))
            config = make_config(setting, name)
            plan = planned(config, setting)
            others = torch.cuda.memory_allocated() if setting.cuda else 0  # reference cycles may keep an engine
            engine = make_engine(config, setting)
            phases = Phases(engine, make_batch(config, 4, setting))
            for _ in range(setting.pick(WARM, 1)):
                phases.forward()
                phases.backward()
                phases.step()
            found: dict[str, int] = {}
            for _ in range(setting.pick(MEASURED, 1)):
                steps = measured_on_cuda(phases, others) if setting.cuda else measured_on_cpu(phases, plan["kept"])
                found = {key: max(size, found.get(key, 0)) for key, size in steps.items()}
            report.value(f"{name}, planned bytes", plan)
            report.value(f"{name}, measured bytes", found)
            _check(name, plan, found, near, report)
            del engine, phases
        free(setting)


def _check(name: str, plan: dict[str, Any], found: dict[str, Any], near: float, report: Report) -> None:
    for key, size in found.items():
        ratio = plan[key] / size
        report.check(f"{name}: planned over measured, {key}", ratio, f"1 +- {near:g}", abs(ratio - 1) <= near)
    peaks = [max(each[key] for key in ("backward", "step") if key in found) for each in (plan, found)]
    ratio = peaks[0] / peaks[1]
    report.check(f"{name}: planned over measured peak", ratio, f"1 +- {near:g}", abs(ratio - 1) <= near)
