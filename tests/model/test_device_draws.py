"""Numbers that a GPU draws are those of torch on this host's CPU.

On a GPU: python -m pytest -m gpu tests/model/test_device_draws.py. Without one, Triton's interpreter runs the kernel:
see tests/model/test_kernels.py.
"""

import math
import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Generator, Tensor

from model.draws import device
from model.draws.device import DeviceDraws, untempered
from model.draws.distributions import Distribution, Draw, Normal, fill
from model.kernels import available

CUDA = torch.cuda.is_available()
INTERPRETED = pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="needs a GPU, or TRITON_INTERPRET=1")


def uniform_bits(seed: int, size: int) -> np.ndarray:
    """Of the uniform float32 numbers that torch draws."""
    return RandomState(seed).randint(0, 2**32, size=size, dtype=np.uint32) & np.uint32(0xFFFFFF)


def test_any_numbers_can_be_drawn() -> None:
    """The states whose next integers are given, against the generator's own states."""
    state = RandomState(3).get_state(legacy=False)["state"]["key"]
    generator = RandomState(3)
    given = generator.randint(0, 2**32, size=624, dtype=np.uint32)
    after = generator.get_state(legacy=False)["state"]["key"]
    assert not np.array_equal(after, state) and np.array_equal(untempered(given), after)


def test_the_table_holds_what_normal_makes_of_uniform_numbers() -> None:
    """Radius and angle apart, multiplied, are torch's numbers, to the bit."""
    size = 1 << 13
    bits = uniform_bits(5, 2 * size).reshape(-1, 16)
    lengths, angles = bits[:, :8].reshape(-1), bits[:, 8:].reshape(-1)
    with patch.multiple(device, UNIFORMS=size, CHUNK=1 << 11):
        radius = torch.cat([first for first, _ in device._normals_of(lengths, np.zeros_like(lengths))])
        # 8 radii of one uniform number each, to find one that is 1
        near = round((1 - math.exp(-0.5)) * 2**24) + np.arange(-size // 2, size // 2, dtype=np.int64)
        radii = torch.cat([first for first, _ in device._normals_of(near.astype(np.uint32), np.zeros_like(lengths))])
        one = int(near[int((radii == 1.0).nonzero()[0])])
        ones = np.full_like(lengths, one)
        cosine, sine = (torch.cat(parts) for parts in zip(*device._normals_of(ones, angles), strict=True))
    std = 0.0123
    drawn = torch.empty(2 * size).normal_(0.0, std, generator=Generator().manual_seed(5)).view(-1, 16)
    assert torch.equal(drawn[:, :8], (radius * cosine * std).view(-1, 8))
    assert torch.equal(drawn[:, 8:], (radius * sine * std).view(-1, 8))


@pytest.fixture(scope="module")
def draws() -> DeviceDraws:
    return DeviceDraws(torch.device("cuda" if CUDA else "cpu"))


def reference(distribution: Distribution, shape: torch.Size, seed: int) -> Tensor:
    return fill(torch.empty(shape), distribution, Generator().manual_seed(seed))


@(pytest.mark.gpu if CUDA else INTERPRETED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_of_any_length_are_torchs(draws: DeviceDraws, dtype: torch.dtype) -> None:
    wide, narrow = Normal(0.5, truncated=True), Normal(0.0279, truncated=True)
    made = list[Draw]()
    for seed, (rows, columns, distribution) in enumerate(
        [(64, 16, wide), (64, 16, wide), (39, 80, wide), (39, 160, narrow), (64, 16, narrow), (33, 1024, narrow)]
    ):
        target = torch.full((rows, columns), float("nan"), dtype=dtype, device=draws.device)
        made.append(Draw(target, distribution, 2**62 + seed))  # the generator takes 32 bits of a seed
    draws.draw(made)
    for target, drawn_from, seed in made:
        expected = reference(drawn_from, target.shape, seed).to(dtype)
        assert torch.equal(target.cpu(), expected), (target.shape, drawn_from)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.gpu
def test_a_gpu_draws_what_it_can_and_the_processor_the_rest() -> None:
    found = device.device_draws(torch.device("cuda"))
    assert found is not None
    one = Draw(torch.empty(1000, 1008, device="cuda"), Normal(0.1, truncated=True), 7)
    assert device.is_suitable(one)
    assert not device.is_suitable(one._replace(distribution=Normal(0.1)))
    assert not device.is_suitable(one._replace(target=torch.empty(1001, 3, device="cuda")))
    assert not device.is_suitable(one._replace(target=torch.empty(1000, 1008)))
    found.draw([one])
    assert torch.equal(one.target.cpu(), reference(one.distribution, one.target.shape, 7))
    with available.torch_only():
        assert not device.is_suitable(one)
