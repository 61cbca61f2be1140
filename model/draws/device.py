"""Truncated normal numbers drawn on a GPU, equal to the bit to those that torch draws on this host's CPU.

The kernel repeats the generator's integers, and looks up what torch's own ``normal_`` makes of them here: which bits
the logarithm, cosine and sine have depends on the processor. The tables come from a generator whose state is set so
that it draws given numbers.
"""

import struct
import warnings
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch
from numpy.random import RandomState
from torch import Generator, Tensor

from model.draws.blocks import draw
from model.draws.distributions import Draw, Normal
from model.kernels.available import kernels, usable

LANES, HALF = 16, 8  # numbers that normal_ makes together: of 8 radii and 8 angles
WORDS = 624  # of the generator's state
SMALLEST = 1024  # numbers of a target that is worth a stream
UNIFORMS = 1 << 24  # different uniform float32 numbers
DRAWN = 512  # numbers from a state that is set: it has 624
CHUNK = 1 << 20  # pairs of uniform numbers for which states are made together: 11 MB


class DeviceDraws:
    """Draws on one GPU; holds tables of 192 MiB there.

    Args:
        device: the GPU, where Triton's kernels run.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.tables = tuple(table.to(device) for table in tables())

    def draw(self, draws: Iterable[Draw]) -> None:
        """Make draws that ``is_suitable``; those of equal size and distribution together."""
        together: dict[tuple[int, Normal], list[Draw]] = {}
        for one in draws:
            assert isinstance(one.distribution, Normal)
            together.setdefault((one.target.numel(), one.distribution), []).append(one)
        for (size, distribution), alike in together.items():
            self._draw(alike, size, distribution.std)

    def _draw(self, draws: list[Draw], size: int, std: float) -> None:
        bound = torch.tensor(2 * std, dtype=torch.float32).item()
        numbers = [one.target.to(torch.float32) for one in draws]  # float32 targets themselves
        addresses = torch.tensor([tensor.data_ptr() for tensor in numbers], device=self.device)
        seeded = [RandomState(one.seed & 0xFFFFFFFF).get_state(legacy=False)["state"]["key"] for one in draws]
        states = torch.from_numpy(np.stack(seeded).view(np.int32)).to(self.device)
        done = 0
        for passes in count(1):
            blocks = range(done, -(-passes * size // WORDS))
            kernels("normal_draws").draw_blocks(states, addresses, self.tables, blocks, size, std, bound)
            done = blocks.stop
            if torch.stack([torch.stack(tensor.aminmax()).abs().max() for tensor in numbers]).max().item() <= bound:
                break
        for one, tensor in zip(draws, numbers, strict=True):
            if one.target.dtype != torch.float32:
                one.target.copy_(tensor)


def is_suitable(one: Draw) -> bool:
    """Return whether the kernel can make a draw."""
    distribution, size = one.distribution, one.target.numel()
    truncated = isinstance(distribution, Normal) and distribution.truncated
    return truncated and size >= SMALLEST and size % LANES == 0 and usable(one.target)


def device_draws(device: torch.device) -> DeviceDraws | None:
    """Return draws for a GPU; None, with a warning, where they are not those of the CPU."""
    try:
        found = DeviceDraws(device)
        numbers = torch.empty(2, 40 * LANES * WORDS, device=device)
        sample = [Draw(target, Normal(0.0123, truncated=True), seed) for seed, target in enumerate(numbers)]
        found.draw(sample)
        for one in sample:
            expected = one._replace(target=torch.empty(len(one.target)))
            draw(expected)
            if not torch.equal(one.target.cpu(), expected.target):
                raise RuntimeError("other numbers than the processor's")
    except Exception as error:  # whatever Triton or another version of torch raises, the processor still draws
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"weights are drawn by the processor: {type(error).__name__}: {reason}", stacklevel=2)
        return None
    return found


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """Return radius, cosine and sine as ``normal_`` computes them of every uniform number, ``[2^24]`` each.

    Raises:
        RuntimeError: this version of torch computes them in another way.
    """
    every, zeros = np.arange(UNIFORMS, dtype=np.uint32), np.zeros(UNIFORMS, np.uint32)
    radius = torch.cat([first for first, _ in _normals_of(every, zeros)])  # angle 0: cosine 1
    one = (radius == 1.0).nonzero().view(-1)
    if not len(one):
        raise RuntimeError("no radius is 1")
    ones = np.full(UNIFORMS, int(one[0]), np.uint32)
    cosine, sine = (torch.cat(parts) for parts in zip(*_normals_of(ones, every), strict=True))
    return radius, cosine, sine


def _normals_of(lengths: np.ndarray, angles: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the two numbers that ``normal_`` makes of each pair of uniform numbers, given by their bits."""
    generator = Generator()
    for first in range(0, UNIFORMS, CHUNK):
        pairs = (part[first : first + CHUNK].reshape(-1, HALF) for part in (lengths, angles))
        bits = np.concatenate(list(pairs), axis=1).reshape(-1, DRAWN)
        numbers = torch.empty(bits.shape)
        for row, state in zip(numbers, _states_before(bits, generator), strict=True):
            generator.set_state(state.clone())  # it takes no part of another tensor
            row.normal_(generator=generator)
        normals = numbers.view(-1, LANES)
        yield normals[:, :HALF].flatten(), normals[:, HALF:].flatten()


def _states_before(bits: np.ndarray, generator: Generator) -> Tensor:
    """The states of a generator, in its own format, whose next 32-bit integers are the rows of ``bits``."""
    states = np.tile(generator.get_state().numpy(), (len(bits), 1))
    states[:, 8:24] = np.frombuffer(struct.pack("<iiQ", WORDS, 1, 0), np.uint8)  # words left, seeded, the next one
    words = np.zeros((len(bits), WORDS), np.uint64)
    words[:, : bits.shape[1]] = untempered(bits)
    states[:, 24 : 24 + 8 * WORDS] = words.view(np.uint8)
    return torch.from_numpy(states)


def untempered(y: np.ndarray) -> np.ndarray:
    """Return the words of a Mersenne Twister's state that it gives as the uint32 numbers ``y``."""
    y = y ^ (y >> 18)
    y = y ^ ((y << 15) & 0xEFC60000)
    z = y
    for _ in range(4):
        z = y ^ ((z << 7) & 0x9D2C5680)
    y = z ^ (z >> 11)
    return y ^ (y >> 22)
