"""Step 8: Adafactor's step beside the fused AdamW on the same weights; a checkpoint's stall, and what a load gives."""

import gc
from typing import Any

import torch

from benchmarks.checkpoint import measure as measure_saves
from benchmarks.gpu.accounting import Marks, profile
from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.throughput import Phases, make_batch, make_config, make_engine, time_phases
from training.config.run import RunConfig
from training.engine.randomness import seed_everything

ADAMW = ("optimizer.name=adamw", "optimizer.learning_rate=1e-4")
STEPS_AFTER_LOAD = 2


def measure_updates(setting: Setting, report: Report) -> None:
    """Measure both optimizers, one engine at a time, then save and load the Adafactor engine."""
    layers = f"model.num_layers={setting.pick(12, 4)}"
    seconds: dict[str, dict[str, float]] = {}
    for name, overrides in (("adamw, fused", ADAMW), ("adafactor", ())):
        with report.part(name):
            report.require(setting.pick(10, 0))
            config = make_config(setting, layers, *overrides)
            engine = make_engine(config, setting)
            if name != "adafactor":
                for group in engine.basic_optimizer.param_groups:
                    group.update(fused=True, foreach=None)
            report.value("parameters", sum(p.numel() for p in engine.module.parameters()))
            seconds[name] = measure_optimizer(name, engine, config, setting, report)
            if name == "adafactor":
                with report.part("checkpoint"):
                    report.require(setting.pick(20, 0))
                    check_checkpoint(engine, config, setting, report)
            del engine
            free(setting)
    if len(seconds) == 2:
        a, b = seconds["adafactor"], seconds["adamw, fused"]
        report.value("adafactor over fused AdamW", {key: a[key] / b[key] for key in a})


def free(setting: Setting) -> None:
    """Return the memory of an engine that is gone."""
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()


def measure_optimizer(name: str, engine: Any, config: RunConfig, setting: Setting, report: Report) -> dict[str, float]:
    """Return seconds of the engine's whole step, and of the torch optimizer within it."""
    phases, marks = Phases(engine, make_batch(config, 2, setting)), Marks(setting.device)
    points: list[Any] = []
    hooks = [
        engine.basic_optimizer.register_step_pre_hook(lambda *_: points.append(marks.mark())),
        engine.basic_optimizer.register_step_post_hook(lambda *_: points.append(marks.mark())),
    ]
    repeats = setting.pick(9, 1)
    whole = time_phases(phases, repeats, setting)["step"]
    for hook in hooks:
        hook.remove()
    per_step = len(points) // (repeats + 3)  # the first three warm up
    inner = [
        sum(marks.between(*points[i : i + 2]) for i in range(first, first + per_step, 2))
        for first in range(3 * per_step, len(points), per_step)
    ]
    phases.forward()
    phases.backward()
    profiled = profile(phases.step, setting.device)
    found = {"step": whole, "optimizer": sorted(inner)[len(inner) // 2]}
    report.value(f"{name}, ms", {key: value * 1e3 for key, value in found.items()} | {"launches": profiled["launches"]})
    report.value(f"{name}, profile of a step", profiled)
    return found


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def train_on(engine: Any, config: RunConfig, setting: Setting) -> None:
    """Train steps whose randomness depends on their number alone."""
    for step in range(STEPS_AFTER_LOAD):
        seed_everything("gpu", step)
        phases = Phases(engine, make_batch(config, 2 + step, setting))
        phases.forward()
        phases.backward()
        phases.step()


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of any weight; infinity where one is not a number."""
    found = max(float((a - second[name]).abs().max()) for name, a in first.items())
    return found if found == found else float("inf")


def check_checkpoint(engine: Any, config: RunConfig, setting: Setting, report: Report) -> None:
    """Save, train on, load, and train on once more: weights must return exactly, and so must what follows."""
    from training.checkpoint.load import load_checkpoint
    from training.checkpoint.resume import find_checkpoint

    at_save = weights(engine)
    (saved,) = measure_saves(engine, config, 1)
    report.value("save", saved | {"GB/s": saved["bytes"] / 1e9 / saved["save_seconds"]})
    train_on(engine, config, setting)
    after = weights(engine)
    moved = largest_difference(after, at_save)
    report.check("training changes the weights", moved, "> 0", moved > 0)
    checkpoint = find_checkpoint(config, 1, 1)
    load_checkpoint(engine, checkpoint)
    loaded = largest_difference(weights(engine), at_save)
    report.check("loaded weights against saved: largest difference", loaded, "0", loaded == 0)
    train_on(engine, config, setting)
    again = largest_difference(weights(engine), after)
    # The device may add in another order; training.deterministic is step 6's.
    limit = 0.0 if not setting.cuda else moved / 10
    report.check(f"{STEPS_AFTER_LOAD} steps after the load against before", again, f"<= {limit:g}", again <= limit)
