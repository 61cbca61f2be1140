"""Weak scaling of the expert-parallel layer: equal tokens per rank, experts replicated or split over two ranks."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from common.ports import free_port
from model.config import StMoeConfig

RANKS = 2


def weak_scaling(config: StMoeConfig, tokens: int, repeats: int) -> dict[str, Any]:
    """Measure a step of two gloo ranks, one thread each, at expert-parallel sizes 1 and 2.

    At size 1 each rank holds all experts and exchanges nothing, but both ranks run at the same time, so that both sizes
    share the machine's caches and memory bandwidth in the same way.

    Args:
        config: the layer's configuration.
        tokens: tokens per rank.
        repeats: timed steps of each size; their median counts.

    Returns:
        ``seconds`` per step, by expert-parallel size; ``efficiency``, seconds at size 1 over those at size 2;
        ``all_to_all_bytes`` and ``all_to_all_seconds`` of rank 0 in the last step at size 2.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        mp.start_processes(_rank, (port, config.to_dict(), tokens, repeats, out), nprocs=RANKS, start_method="spawn")
        return dict(torch.load(out, weights_only=True))


def _rank(rank: int, port: int, config_values: dict[str, Any], tokens: int, repeats: int, out: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    from training.run.distributed import initialize_distributed
    from training.run.process import Process

    initialize_distributed(Process.from_environment(), timeout_seconds=300)
    import deepspeed.comm as dist

    from model.initialization import initialize_weights
    from parallel.config import ParallelConfig
    from parallel.layer import sparse_factory, take_traffic

    config = StMoeConfig.from_dict(config_values)
    layers = {}
    for size in (1, RANKS):
        layers[size] = sparse_factory(ParallelConfig(expert_parallel_size=size))(config, decoder=False).train()
        initialize_weights(layers[size], config, seed=0)
    length = min(tokens, 512)
    x = torch.randn(tokens // length, length, config.d_model, generator=torch.Generator().manual_seed(rank))
    x.requires_grad_()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    times: dict[int, list[float]] = {size: [] for size in layers}
    traffic = (0, 0.0)
    for repeat in range(-1, repeats):
        for size, layer in layers.items():
            layer.zero_grad(set_to_none=True)
            take_traffic(layer)
            dist.barrier()
            began = time.perf_counter()
            y, _ = layer(x, mask)
            y.backward(torch.ones_like(y))
            dist.barrier()
            if repeat >= 0:
                times[size].append(time.perf_counter() - began)
            traffic = take_traffic(layer)
    medians = {size: statistics.median(taken) for size, taken in times.items()}
    if rank == 0:
        torch.save(
            {
                "seconds": medians,
                "efficiency": medians[1] / medians[RANKS],
                "all_to_all_bytes": traffic[0],
                "all_to_all_seconds": traffic[1],
            },
            out,
        )
    dist.barrier()
    dist.destroy_process_group()
