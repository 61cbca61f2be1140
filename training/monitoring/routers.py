"""What the routers decide for single tokens: the routing of every sparse layer, as a forward pass leaves it.

Shape suffixes: N = choices of a token, G = groups, S = tokens of a group, E = experts, B = sequences, L = positions of
a stack; G * S = B * L.
"""

import re
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.moe.layer import SparseFeedForward
from model.moe.routing import Routing


class TokenRouting(NamedTuple):
    """The decisions for each token of a sparse layer, by sequence and position; padding has them too."""

    expert_BLN: Tensor  # int64, the experts that the token chooses, or that choose it, most probable first; -1: none
    kept_BLN: Tensor  # bool, whether the expert processes the token
    gate_BLN: Tensor  # float32, weight in the output; 0 where not kept
    entropy_BL: Tensor  # float32, of the router's probabilities, nats
    logsumexp_BL: Tensor  # float32, of the router's logits


class Seen(NamedTuple):
    """The last forward pass of a sparse layer."""

    routing: Routing
    logits_GSE: Tensor

    def serving_experts(self, sequences: int, wanted: int) -> list[list[list[int]]]:
        """Return, by sequence and position, the experts that process a token, first choice first.

        Args:
            sequences: B.
            wanted: sequences to return.
        """
        chosen_NGS = torch.where(self.routing.kept_NGS, self.routing.expert_NGS, -1)
        chosen_BLN = _by_sequence(chosen_NGS, sequences)[:wanted]
        return [[[expert for expert in token if expert >= 0] for token in row] for row in chosen_BLN.tolist()]

    def by_token(self, sequences: int, choices: int) -> TokenRouting:
        """Return the decisions for each token of a batch of ``sequences``; ``choices`` is N, further ones are cut."""
        routing, log_p_GSE = self.routing, self.logits_GSE.log_softmax(-1)
        # Where experts choose, a token has only those that chose it.
        chosen_NGS = routing.kept_NGS if routing.requested_NGS is None else torch.ones_like(routing.kept_NGS)
        parts = (torch.where(chosen_NGS, routing.expert_NGS, -1), routing.kept_NGS, routing.gate_NGS)
        fills = (-1, False, 0.0)
        cut = []
        for part_NGS, fill in zip(parts, fills, strict=True):
            part_BLN = _by_sequence(part_NGS, sequences)[..., :choices]
            missing = choices - part_BLN.shape[-1]
            cut.append(nn.functional.pad(part_BLN, (0, missing), value=fill))
        entropy_GS = -(log_p_GSE.exp() * log_p_GSE).sum(-1)
        of_tokens = (entropy_GS, self.logits_GSE.logsumexp(-1))
        return TokenRouting(*cut, *(part_GS.reshape(sequences, -1) for part_GS in of_tokens))


class RouterObserver:
    """Keeps the routing of every sparse layer between ``start`` and ``stop``.

    Args:
        module: the model, on any layout.

    Attributes:
        layers: the sparse layers by name, ``<stack>_<block>``.
        seen: of each layer, its last forward pass; the tensors live as long as they are here.
    """

    def __init__(self, module: nn.Module):
        self.layers = {
            f"{found[1]}_{found[2]}": layer
            for name, layer in module.named_modules()
            if isinstance(layer, SparseFeedForward) and (found := re.search(r"(encoder|decoder)\.blocks\.(\d+)", name))
        }
        self.seen: dict[str, Seen] = {}

    def start(self) -> None:
        """Watch all forward passes from now on."""
        for name, layer in self.layers.items():
            layer.observer = partial(self._see, name)

    def stop(self) -> None:
        """Watch no more, and forget what was seen."""
        for layer in self.layers.values():
            layer.observer = None
        self.seen.clear()

    def _see(self, name: str, routing: Routing, logits_GSE: Tensor) -> None:
        self.seen[name] = Seen(routing, logits_GSE.detach().float())


def _by_sequence(of_choices_NGS: Tensor, sequences: int) -> Tensor:
    """``[N, G, S]`` to ``[B, L, N]``."""
    return of_choices_NGS.view(len(of_choices_NGS), sequences, -1).movedim(0, -1)
