"""Runs steps one after another in one process, which ``python -m benchmarks.gpu`` starts and watches.

A step that breaks the CUDA context ends the process; the parent starts another one for the steps that are left.
"""

import argparse
import faulthandler
import gc
import importlib
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.results import Report, Results
from benchmarks.gpu.setting import Setting, card_name
from common.project import ROOT, code_version

PACKAGES = ("torch", "deepspeed", "transformers", "huggingface_hub", "numpy", "pydantic", "sentencepiece", "triton")
KEPT_BYTES = 2**31  # an engine's reference cycles may keep more; the next step needs the memory


class Step(NamedTuple):
    """A step of the measurement: ``function(setting, report)`` of ``module``."""

    title: str
    module: str
    function: str
    seconds: float  # budget on a GPU


STEPS = {
    "1": Step("versions, imports", "worker", "check_imports", 60),
    "2": Step("grouped expert products against float64", "sparse_layer", "check_grouped_products", 40),
    "3": Step("all-to-all on one rank beside busy streams", "transfer", "check_transfers", 40),
    "4": Step("the model against the CPU, host reads", "correctness", "check_model", 60),
    "5": Step("attention kernels, cuDNN's NaN", "attention", "check_attention", 40),
    "6": Step("train.py: ZeRO 0-3, precisions, resume", "runs", "check_runs", 130),
    "7": Step("st_moe_l, one rank's share of experts", "throughput", "measure_throughput", 110),
    "8": Step("optimizer step, checkpoint", "updates", "measure_updates", 80),
    "9": Step("the sparse layer beside its peers", "sparse_layer", "measure_layer", 70),
    "10": Step("as 7, with training.compile", "throughput", "measure_compiled", 150),
    "11": Step("planned memory against the card's", "memory", "check_memory", 40),
}


def check_imports(setting: Setting, report: Report) -> None:
    """Import every module of the project, and record the versions of what it uses."""
    report.value("versions", {name: _version(name) for name in PACKAGES})
    files = [ROOT / "train.py", ROOT / "convert.py"]
    for folder in ("common", "model", "data", "optim", "parallel", "training", "studies", "benchmarks"):
        files += sorted((ROOT / folder).rglob("*.py"))
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__main__"]
    if not setting.cuda:  # kernels need Triton, which comes with torch for CUDA
        modules = [module for module in modules if not module.startswith("model.kernels.")]
    for module in modules:
        with report.part(f"import {module}"):
            importlib.import_module(module.removesuffix(".__init__"))
    report.value("modules", len(modules))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run_step(number: str, setting: Setting, results: Results, seconds: float) -> None:
    """Run one step; whatever it raises is recorded."""
    step = STEPS[number]
    report = Report(results, number, step.title, seconds)
    report.step["measured"] = {"at": datetime.now(UTC).isoformat(timespec="seconds")} | code_version()
    with report.part("step"):
        module = sys.modules[__name__] if step.module == "worker" else _module(step.module)
        getattr(module, step.function)(setting, report)
    with report.part("device"):
        _settle(setting)
    report.finish()


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.gpu.{name}")


def _settle(setting: Setting) -> None:
    """Wait for the device, and free what the step has left; raises what a kernel has done wrong."""
    import torch

    gc.collect()
    if setting.cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def usable(setting: Setting) -> bool:
    """Return whether the device still computes: an illegal access or an assertion breaks a process for good."""
    import torch

    try:
        return bool(torch.ones(8, device=setting.device).sum().item() == 8)
    except RuntimeError:
        return False


def main() -> None:
    """Run the steps that are named; end early with code 1 if the device is unusable after one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--steps", required=True)
    parser.add_argument("--until", type=float, required=True, help="Unix time at which the last step must have ended")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    import torch

    from training.run.distributed import initialize_distributed
    from training.run.process import Process

    results = Results(options.results)
    if not options.toy and not torch.cuda.is_available():
        sys.exit("error: no CUDA device; --cpu-rehearsal runs the steps at toy sizes on a CPU")
    device = initialize_distributed(Process(0, 0, 1, 1), 120.0)
    if device == "cpu":
        torch.set_num_threads(1)
    setting = Setting(device, options.toy, options.data, options.scratch, options.traces)
    results.values["machine"] = card_name() | {"torch": torch.__version__, "python": sys.version.split()[0]}
    for number in options.steps.split(","):
        budget = setting.pick(1.0, 10.0) * STEPS[number].seconds  # a rehearsal is not timed
        seconds = min(budget, options.until - time.time())
        if seconds < 5:
            results.end(number, "skipped", "no time left")
            continue
        faulthandler.dump_traceback_later(seconds, exit=False)  # the parent shows where a step hung
        run_step(number, setting, results, seconds)
        faulthandler.cancel_dump_traceback_later()
        if not usable(setting):
            sys.exit(1)
        if setting.cuda and torch.cuda.memory_allocated() > KEPT_BYTES:
            return  # the parent starts another process for the steps that are left


if __name__ == "__main__":
    main()
