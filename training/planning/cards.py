"""GPUs: memory, peak FLOP/s, and the bandwidths that connect them. Their data sheets, shared with a run's MFU.

Memory is what ``nvidia-smi`` shows as total. FLOP/s are of dense products, without sparsity: bfloat16 with float32 sums
on tensor cores; float32 without TF32, which runs switch off. Bandwidths are of one GPU and one direction, as the data
sheets give them: within a node NVLink or, where a card has none, PCIe; between nodes the adapters of NVIDIA's reference
servers (DGX and HGX: one adapter per GPU, InfiniBand NDR of 400 Gb/s beside Hopper and Blackwell, HDR of 200 Gb/s
beside the A100) and, for cards in other servers, 100 Gb/s.
"""

import difflib
import re
from dataclasses import dataclass

from common.text import either
from training.config.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """A kind of GPU."""

    name: str  # on the command line
    words: str  # all of them are in the name by which CUDA knows it
    memory_mib: int
    bf16_tflops: float
    fp32_tflops: float
    node_gbs: float  # GB/s to GPUs of the same node
    network_gbs: float  # GB/s to GPUs of other nodes

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.memory_mib << 20

    def flops_per_second(self, precision: str) -> float:
        """Return the peak of matrix products under ``training.precision``."""
        return (self.fp32_tflops if precision == "fp32" else self.bf16_tflops) * 1e12


# The first whose words are all in a device's name is that device. Peaks are TFLOP/s, bandwidths GB/s.
# fmt: off
CARDS: tuple[Card, ...] = (
    #    name         words           MiB      bf16     fp32   node   network
    Card("b200",      "B200",      183_359, 2250.0,    75.0,  900.0,  50.0),
    Card("gh200",     "GH200",      97_871,  989.4,    66.9,  450.0,  50.0),
    Card("h200-nvl",  "H200 NVL",  143_771,  835.5,    60.0,  450.0,  50.0),
    Card("h200",      "H200",      143_771,  989.4,    66.9,  450.0,  50.0),
    Card("h100-nvl",  "H100 NVL",   95_830,  835.5,    60.0,  300.0,  50.0),
    Card("h100-pcie", "H100 PCIe",  81_559,  756.0,    51.2,   64.0,  12.5),
    Card("h100-80gb", "H100",       81_559,  989.4,    66.9,  450.0,  50.0),
    Card("a100-80gb", "A100",       81_920,  312.0,    19.5,  300.0,  25.0),
    Card("a100-40gb", "A100",       40_960,  312.0,    19.5,  300.0,  25.0),
    Card("a40",       "A40",        46_068,  149.7,    37.4,   32.0,  12.5),
    Card("a10",       "A10",        23_028,  125.0,    31.2,   32.0,  12.5),
    Card("l40s",      "L40S",       46_068,  362.05,   91.6,   32.0,  12.5),
    Card("l4",        "L4",         23_034,  121.0,    30.3,   32.0,  12.5),
)
# fmt: on


def find_card(name: str) -> Card:
    """Return the card of this name, in any case. Raises ConfigError: there is none."""
    wanted = re.sub(r"[ _]", "-", name.strip().lower())
    cards = {card.name: card for card in CARDS}
    if wanted in cards:
        return cards[wanted]
    near = [known for known in cards if wanted and known.startswith(wanted)]
    near = near or difflib.get_close_matches(wanted, cards, n=3, cutoff=0.5)
    fix = f"did you mean {either(near)}?" if near else f"there are {', '.join(sorted(cards))}"
    raise ConfigError(f"--card {name}: no such card; {fix}")


def card_of_device(device: str) -> Card | None:
    """Return the first card whose words are all in the name that CUDA gives a device; None if it is not known."""
    words = set(re.split(r"[ -]", device))
    return next((card for card in CARDS if words.issuperset(card.words.split())), None)
