"""Truncated normal numbers drawn per second."""

import argparse
import os
import time

import torch
from torch import Generator

from model.draws.blocks import draw
from model.draws.device import DeviceDraws, device_draws
from model.draws.distributions import Draw, Normal, fill
from model.draws.threads import draw_all

SIZE = 1 << 22  # numbers of a drawn tensor: an expert's matrix
STD = 0.02
STREAMS = (1, 6, 24, 96, 384)  # tensors that a GPU draws at once: three for each expert


def rate(tensors: int, threads: int, device: str, on_device: DeviceDraws | None = None) -> float:
    """Return truncated normal numbers that ``draw_all`` draws per second."""
    draws = [Draw(torch.empty(SIZE, device=device), Normal(STD, truncated=True), seed) for seed in range(tensors)]
    began = time.perf_counter()
    draw_all(draws, threads, on_device)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    expected = draws[-1]._replace(target=torch.empty(SIZE))
    draw(expected)
    if not torch.equal(draws[-1].target.cpu(), expected.target):
        raise RuntimeError("other numbers than the processor's")
    return tensors * SIZE / seconds


def measure_drawing(options: argparse.Namespace) -> None:
    """Print numbers per second of torch's function, of ours, and of the generator alone."""
    torch.set_num_threads(1)
    numbers, bits = torch.empty(SIZE), torch.empty(SIZE, dtype=torch.int32)
    began = time.perf_counter()
    fill(numbers, Normal(STD, truncated=True), Generator().manual_seed(0))
    middle = time.perf_counter()
    bits.random_(generator=Generator().manual_seed(0))
    ended = time.perf_counter()
    load = os.getloadavg()[0]
    print(f"tensors of {SIZE / 1e6:.1f}e6 numbers, million numbers per second; load {load:.1f} at the start")
    print(f"torch's trunc_normal_, one thread  {SIZE / (middle - began) / 1e6:7.1f}")
    print(f"bits of the generator, one pass    {SIZE / (ended - middle) / 1e6:7.1f}")
    for threads in map(int, options.threads.split(",")):
        drawn = rate(2 * threads, threads, options.device) / 1e6
        print(f"{threads:2} threads, into {options.device:4} memory          {drawn:7.1f}")
    if options.device != "cpu":
        began = time.perf_counter()
        on_device = device_draws(torch.device(options.device))
        print(f"the GPU's tables and kernel: {time.perf_counter() - began:.1f} s")
        if on_device is not None:
            rate(1, 1, options.device, on_device)
            for tensors in STREAMS:
                drawn = rate(tensors, 1, options.device, on_device) / 1e6
                print(f"the GPU, {tensors:3} tensors at once         {drawn:7.1f}")
