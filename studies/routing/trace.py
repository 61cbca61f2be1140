"""Every token of held-out text with its experts, as arrays: what ``collect`` writes and the statistics read.

Shape suffixes: T = tokens of a stack, N = choices of a token, X = examples, E = experts.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.files import write_atomically
from common.strict_json import to_json

FILE = "trace.safetensors"
FORMAT = 1
KEY = "trace"  # of the file's metadata: all but the arrays, as JSON

Array = NDArray[Any]


@dataclass(frozen=True)
class Tokens:
    """The real tokens of a stack, ordered by example and position. In the decoder, the ones that enter it."""

    token_T: Array  # int32, id
    example_T: Array  # int32, number of the example
    position_T: Array  # int32, from 0


@dataclass(frozen=True)
class LayerTrace:
    """The router's decisions for the tokens of its stack."""

    expert_TN: Array  # int16, first choice first; -1: none
    kept_TN: Array  # bool, whether the expert processes the token
    gate_TN: Array  # float32, weight in the output; 0 where not kept
    entropy_T: Array  # float32, of the router's probabilities, nats
    logsumexp_T: Array  # float32, of the router's logits

    @property
    def first_T(self) -> Array:
        """The first choice of each token, int64; -1: no expert chose it."""
        return self.expert_TN[:, 0].astype(np.int64)


@dataclass(frozen=True)
class Similarity:
    """Cosines between the experts of a layer."""

    weights_EE: Array  # float32, of all weights of two experts
    router_EE: Array  # float32, of the vectors by which the router scores them


@dataclass(frozen=True)
class Trace:
    """The routing of held-out text by one model.

    Attributes:
        source: the folder of the model, in words.
        step: of the checkpoint; None for an export.
        num_experts: E.
        routing: how tokens were served.
        domains: names of the texts.
        domain_X: int16, text of each example.
        pieces: of each id that occurs.
        stacks: ``encoder`` and ``decoder``.
        layers: of each sparse layer, ``<stack>_<block>``.
        similarity: of each sparse layer.
    """

    source: str
    step: int | None
    num_experts: int
    routing: str
    domains: list[str]
    domain_X: Array
    pieces: dict[int, str]
    stacks: dict[str, Tokens]
    layers: dict[str, LayerTrace]
    similarity: dict[str, Similarity]

    @property
    def examples(self) -> int:
        """X."""
        return len(self.domain_X)

    def tokens_of(self, layer: str) -> Tokens:
        """Return the tokens that a layer routes."""
        return self.stacks[stack_of(layer)]

    def described(self) -> str:
        """Return in a few words which model it is."""
        return self.source if self.step is None else f"{self.source}, step {self.step}"


def stack_of(layer: str) -> str:
    """Return the stack of ``<stack>_<block>``."""
    return layer.partition("_")[0]


def save_trace(trace: Trace, file: Path) -> None:
    """Write a trace, without code in it, as ``safetensors``. Raises OSError."""
    arrays = {"domain": trace.domain_X}
    for part, members in (("stacks", trace.stacks), ("layers", trace.layers), ("similarity", trace.similarity)):
        for name, member in members.items():
            arrays |= {f"{part}/{name}/{f.name}": getattr(member, f.name) for f in fields(member)}
    words = {
        "format": FORMAT,
        "source": trace.source,
        "step": trace.step,
        "num_experts": trace.num_experts,
        "routing": trace.routing,
        "domains": trace.domains,
        "pieces": {str(number): piece for number, piece in trace.pieces.items()},
        "layers": list(trace.layers),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(file, save(contiguous, metadata={KEY: to_json(words)}))


def load_trace(file: Path) -> Trace:
    """Read a trace. Raises ValueError: the file is not there, is damaged, or is none."""
    try:
        with safe_open(file, framework="np") as opened:
            words = json.loads((opened.metadata() or {}).get(KEY, "null"))
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if words is None or words["format"] != FORMAT:
            raise ValueError("another version wrote it, or another program")
        parts: dict[str, dict[str, dict[str, Array]]] = {"stacks": {}, "layers": {}, "similarity": {}}
        for name, array in arrays.items():
            if name != "domain":
                part, member, field = name.split("/")
                parts[part].setdefault(member, {})[field] = array
        return Trace(
            **{key: words[key] for key in ("source", "step", "num_experts", "routing", "domains")},
            domain_X=arrays["domain"],
            pieces={int(number): piece for number, piece in words["pieces"].items()},
            stacks={name: Tokens(**parts["stacks"][name]) for name in ("encoder", "decoder")},
            layers={name: LayerTrace(**parts["layers"][name]) for name in words["layers"]},
            similarity={name: Similarity(**parts["similarity"][name]) for name in words["layers"]},
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no trace that can be read ({error}): collect it again from the model") from None
