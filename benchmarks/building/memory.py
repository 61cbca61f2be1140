"""Memory and time of building an engine, module by module and whole."""

import argparse
import gc
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.multiprocessing as mp

from common.ports import free_port
from common.project import ROOT
from common.strict_json import to_json


def resident(name: str = "VmRSS") -> int:
    """Return bytes of this process's resident memory; ``VmHWM``: its peak since ``forget_peak``."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def forget_peak() -> None:
    """Let ``VmHWM`` begin anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def whole() -> Iterator[None]:
    """Build as DeepSpeed does by itself: it partitions a complete model."""
    from parallel.materialization import Partitioner

    with patch.object(Partitioner, "__call__", lambda *_: None):
        yield


def build_on_rank(rank: int, options: argparse.Namespace, port: int, mode: str, out: Path) -> None:
    """Build an engine on one rank and write what it took."""
    from training.run.distributed import initialize_distributed, shut_down_distributed
    from training.run.process import Process

    process = Process(rank, rank, options.ranks, options.ranks)
    process.export("127.0.0.1", port)
    initialize_distributed(process, 600.0)
    import deepspeed

    from training.config.run import validate
    from training.engine.build import build_engine

    model = {"num_layers": options.layers, "d_model": options.d_model, "d_ff": options.d_ff}
    model |= {"num_heads": options.d_model // 64, "num_experts": options.experts}  # the rest default to st-moe-base
    training = {
        "global_batch_size": options.ranks, "micro_batch_size": 1, "precision": options.precision,
        "deepspeed_config": str(ROOT / "ds_configs" / f"zero{options.zero_stage}.json"),
    }  # fmt: skip
    parallel = {"expert_parallel_size": options.expert_parallel_size}
    config = validate({"model": model, "parallel": parallel, "training": training})
    small = validate({"model": {"num_layers": 4, "d_model": 64, "d_ff": 64, "num_experts": 2}, "training": training})
    build_engine(small, options.ranks, "cpu")  # what imports, buckets and collectives take once
    found: dict[str, Any] = {}
    initialize = deepspeed.initialize

    def initialized(*args: Any, **kwargs: Any) -> Any:
        found.update(made_peak=resident("VmHWM") - before, made_seconds=time.perf_counter() - began)
        return initialize(*args, **kwargs)

    forget_peak()
    before, began = resident(), time.perf_counter()
    with patch.object(deepspeed, "initialize", initialized), whole() if mode == "whole" else nullcontext():
        engine = build_engine(config, options.ranks, "cpu", initialize=options.weights == "drawn")
    found.update(peak=resident("VmHWM") - before, seconds=time.perf_counter() - began)
    gc.collect()
    found.update(resident=resident() - before, **describe(engine))
    out.with_suffix(f".{rank}").write_text(to_json(found), encoding="utf-8")
    shut_down_distributed()


def describe(engine: Any) -> dict[str, Any]:
    """Return the digest of this rank's weights, and bytes: of what it keeps, of the largest module, and parameters."""
    from training.engine.parameters import engine_partitions, model_parameter_specs

    digest, storages = hashlib.sha256(), {}
    for partition in engine_partitions(engine):
        flat = partition.tensor.detach().view(-1)
        for segment in partition.held():
            digest.update(segment.view(flat).contiguous().numpy().data)
        storages[flat.untyped_storage().data_ptr()] = flat.untyped_storage().nbytes()
    for parameter in engine.module.parameters():
        storage = getattr(parameter, "ds_tensor", parameter).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    gradients = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)  # of ZeRO 3
    if gradients is not None:
        storages[gradients.untyped_storage().data_ptr()] = gradients.untyped_storage().nbytes()
    specs, item = model_parameter_specs(engine.module), next(engine.module.parameters()).element_size()
    modules = [sum(specs[p].numel for p in m.parameters(recurse=False)) for m in engine.module.modules()]
    parameters = sum(math.prod(spec.shape) for spec in specs.values())
    values = {"kept": sum(storages.values()), "module": item * max(modules), "parameters": parameters}
    return values | {"digest": digest.hexdigest()}


def measure_building(options: argparse.Namespace) -> None:
    """Build in the chosen ways; print a table."""
    digests: list[list[str]] = []
    for mode in options.modes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "measured"
            mp.start_processes(build_on_rank, (options, free_port(), mode, out), options.ranks, start_method="spawn")
            files = [out.with_suffix(f".{rank}") for rank in range(options.ranks)]
            ranks = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not digests:
            print(
                f"{ranks[0]['parameters'] / 1e9:.2f}e9 parameters, ZeRO {options.zero_stage}, {options.precision}, "
                f"{options.ranks} ranks, EP {options.expert_parallel_size}; GB of one rank, largest of all ranks"
            )
            print(f"{'':10} {'peak':>6} {'kept':>6} {'module':>7} {'ratio':>6} {'made':>6} {'s':>6}")
        peak, kept, module, made = (max(rank[key] for rank in ranks) for key in ("peak", "kept", "module", "made_peak"))
        print(
            f"{mode:10} {peak / 1e9:6.2f} {kept / 1e9:6.2f} {module / 1e9:7.2f} {peak / (kept + module):6.2f} "
            f"{made / 1e9:6.2f} {max(rank['seconds'] for rank in ranks):6.1f}",
            flush=True,
        )
        digests.append([rank["digest"] for rank in ranks])
    if len(digests) > 1:
        same = all(other == digests[0] for other in digests)
        print("weights of all ranks: " + ("equal to the bit" if same else "DIFFERENT"))
