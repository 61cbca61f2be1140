"""Time of a whole training step: our models beside Hugging Face's under the same DeepSpeed engine, in one process.

python -m benchmarks.whole_step                  # all: results in benchmarks/results/whole_step_<device>.json
python -m benchmarks.whole_step --no-compile --dtypes fp32 --only "ours dense GEGLU,HF T5 v1.1"
python -m benchmarks.whole_step --two-ranks      # HF Switch under ZeRO 1 on two ranks: prints how it fails

AdamW, ZeRO 1, no clipping; bf16 is autocast over fp32 weights. All contenders take turns, phase by phase. The limit is
the matrix products of such a step alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import seconds
from benchmarks.whole_models import CONTENDERS, LIMITS, PEERS, TOY, Products, ServedTokens, Shape
from common.program import print_anything
from common.project import ROOT
from common.strict_json import to_json

PHASES = ("forward", "backward", "step")
PRECISIONS = {"fp32": "fp32", "bf16": "bf16_autocast"}
COMPILED = " compiled"
NOTES = {
    "HF Switch top-1": "drops no token, as ours hardly does; on two ranks under ZeRO 1 it does not run: the ranks "
    "disagree about the experts that got no token, and so about the size of a reduction (--two-ranks shows it)",
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default=",".join(PRECISIONS), help="of fp32, bf16 (default: both)")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="names of contenders (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each contender (%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled models out, which take minutes")
    parser.add_argument("--toy", action="store_true", help="toy sizes: shows that it runs, not how fast")
    parser.add_argument("--two-ranks", action="store_true", help="only run HF Switch on two ranks, and show its end")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args()
    options.dtypes, options.only = options.dtypes.split(","), options.only.split(",")
    for key, values, known in (("dtypes", options.dtypes, PRECISIONS), ("only", options.only, CONTENDERS)):
        unknown = [value for value in values if value not in known]
        if unknown:
            parser.error(f"--{key}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    return options


class Training:
    """A model with its engine, and one training step of it in three phases."""

    def __init__(self, name: str, shape: Shape, dtype: str, device: str, ranks: int = 1):
        import deepspeed

        from optim.groups import parameter_groups
        from training.config.deepspeed import deepspeed_config
        from training.config.run import validate

        base = name.removesuffix(COMPILED)
        training = {
            "global_batch_size": shape.batch * ranks,
            "micro_batch_size": shape.batch,
            "precision": PRECISIONS[dtype],
            "deepspeed_config": str(ROOT / "ds_configs" / "zero1.json"),
        }
        optimizer = {
            "name": "adamw",
            "gradient_clipping": 0.0,
            "weight_decay": 0.0,
            "learning_rate": 1e-9,
        }  # so that routing stays as balanced as at the start, in all models
        config = validate({"model": {}, "optimizer": optimizer, "training": training})
        torch.manual_seed(0)
        model: Any = CONTENDERS[base].make(shape).to(device).train()
        if name != base:
            compile_blocks(model, CONTENDERS[base].block)
        self.weights = sum(p.numel() for p in model.parameters())
        embedding = model.get_input_embeddings().weight
        adamw = torch.optim.AdamW(parameter_groups(model.parameters(), config.optimizer, embedding), fused=True)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=deepspeed_config(config, ranks))
        self.loss: Any = None

    def served(self, batch: dict[str, torch.Tensor]) -> float | None:
        """Return the share of tokens that get an expert, see ``ServedTokens``."""
        count = ServedTokens(self.engine.module)
        with torch.no_grad():
            return count.share(self.engine(**batch))

    def phases(self, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], object]]:
        """Return the phases of a step on ``batch``, to be called in order."""

        def forward() -> None:
            self.loss = self.engine(**batch).loss

        return {"forward": forward, "backward": lambda: self.engine.backward(self.loss), "step": self.engine.step}


def compile_blocks(model: nn.Module, block: str) -> None:
    """Let every block compile itself at its first call, as ``training.compile`` does."""
    from training.engine.compilation import VARIANTS

    torch._dynamo.config.recompile_limit = VARIANTS
    for module in model.modules():
        if type(module).__name__ == block:
            module.compile(dynamic=False)


def make_batch(shape: Shape, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw token ids without padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"input_ids": shape.inputs, "labels": shape.targets}
    return {
        name: torch.randint(2, shape.vocabulary, (shape.batch, size), generator=generator).to(device)
        for name, size in sizes.items()
    }


def measure(shape: Shape, dtype: str, names: Collection[str], repeats: int, device: str) -> dict[str, Any]:
    """Return medians of the phases of each contender in seconds, and of the products alone, under the limits' names."""
    batch = make_batch(shape, device)
    trainings = {name: Training(name, shape, dtype, device) for name in names}
    kinds = dict.fromkeys(CONTENDERS[name.removesuffix(COMPILED)].limit for name in names)
    numbers = torch.float32 if dtype == "fp32" else torch.bfloat16
    limits = {limit: Products(shape, limit, numbers, device) for limit in LIMITS if limit in kinds}
    turns: dict[str, dict[str, Callable[[], object]]] = {name: t.phases(batch) for name, t in trainings.items()}
    turns |= {limit: {"forward": p.forward, "backward": p.backward} for limit, p in limits.items()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for repeat in range(-2, repeats):  # the first two warm up
        for name, phases in turns.items():
            taken = {phase: seconds(call, device) for phase, call in phases.items()}
            if repeat >= 0:
                times[name].append(taken)
    medians = {name: {phase: statistics.median(t[phase] for t in of) for phase in of[0]} for name, of in times.items()}
    for name, of in times.items():
        medians[name]["whole"] = statistics.median(sum(t.values()) for t in of)
    return {
        "rows": {
            name: medians[name] | {"weights": t.weights, "served": t.served(batch)} for name, t in trainings.items()
        },
        "limits": {name: medians[name] for name in limits},
        "losses": {name: float(t.loss.detach()) for name, t in trainings.items()},
        "all_seconds": {name: [sum(t.values()) for t in of] for name, of in times.items()},
    }


def table(cell: dict[str, Any]) -> str:
    """Format one dtype's results; ratios compare with the peer in the same form, plain or compiled."""
    widths = dict.fromkeys((*PHASES, "whole"), 8) | {"over peer": 9, "over limit": 10, "served": 7}
    lines = [" ".join([" " * 34, *(f"{title:>{width}}" for title, width in widths.items()), " ms"])]
    for name, row in cell["rows"].items():
        base = name.removesuffix(COMPILED)
        peer = cell["rows"].get(PEERS.get(base, "") + name.removeprefix(base)) or cell["rows"].get(PEERS.get(base, ""))
        limit = cell["limits"][CONTENDERS[base].limit]
        row["over_limit"] = row["whole"] / limit["whole"]
        if peer:
            row["over_peer"] = row["whole"] / peer["whole"]
        phases = " ".join(f"{row[phase] * 1e3:8.1f}" for phase in (*PHASES, "whole"))
        ratios = f"{row.get('over_peer', float('nan')):9.2f} {row['over_limit']:10.2f}"
        served = "" if row["served"] is None else f"{row['served']:7.1%}"
        lines.append(f"{name:34} {phases} {ratios} {served}")
    for name, row in cell["limits"].items():
        forward, backward, whole = (row[phase] * 1e3 for phase in ("forward", "backward", "whole"))
        lines.append(f"{'limit, ' + name:34} {forward:8.1f} {backward:8.1f} {'':8} {whole:8.1f}")
    return "\n".join([*lines, *(f"{name}: {note}" for name, note in NOTES.items() if name in cell["rows"])])


def start_process() -> str:
    """Join the distributed run, of one process unless a launcher says otherwise, and return the device."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from training.engine.numerics import set_numerics
    from training.run.distributed import initialize_distributed
    from training.run.process import Process

    device = initialize_distributed(Process.from_environment(), timeout_seconds=60)
    set_numerics(deterministic=False)
    return device


def try_two_ranks() -> None:
    """Run HF Switch under ZeRO 1 as one of two ranks: toy sizes, where experts stay without tokens."""
    device = start_process()
    rank = int(os.environ["RANK"])
    training = Training("HF Switch top-1", TOY, "fp32", device, ranks=2)
    for step in range(4):
        for phase in training.phases(make_batch(TOY, device, seed=2 * step + rank)).values():
            phase()
    print(f"rank {rank}: 4 steps ran", flush=True)


def launch_two_ranks() -> None:
    """Start ``try_two_ranks`` twice and print how each rank ends."""
    from common.ports import free_port

    port = str(free_port())
    code = "from benchmarks.whole_step import try_two_ranks; try_two_ranks()"
    ranks = []
    for rank in ("0", "1"):
        environment = os.environ | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks.append(subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, **streams))  # type: ignore[call-overload]  # noqa: S603
    for number, process in enumerate(ranks):
        output, _ = process.communicate(timeout=200)
        print(f"rank {number}, exit code {process.returncode}: {(output.strip().splitlines() or [''])[-1]}")


def main() -> None:
    """Measure and report."""
    print_anything()
    options = parse_arguments()
    if options.two_ranks:
        launch_two_ranks()
        return
    device = start_process()
    shape = TOY if options.toy else Shape()
    names = [name for base in options.only for name in ((base,) if options.no_compile else (base, base + COMPILED))]
    results: dict[str, Any] = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": options.repeats,
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine(),
        "shape": vars(shape), "cells": {}, "notes": NOTES,
    }  # fmt: skip
    for dtype in options.dtypes:
        cell = results["cells"][dtype] = measure(shape, dtype, names, options.repeats, device)
        title = f"{dtype}, {device}, {results['threads']} threads, median of {options.repeats}"
        print(f"\n{title}\n{table(cell)}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "cpu" if device == "cpu" else results["device"].lower().replace(" ", "_")
    path = options.out / f"whole_step_{kind}.json"
    path.write_text(to_json(json.loads(to_json(results)), indent=2) + "\n", encoding="utf-8")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
