"""Runs a trained model over held-out text and records the routers' decisions; over one or several ranks.

A batch has the same sequences, the same random draws and, with a capacity, the same routing groups on any number of
ranks, so the trace does not depend on it, but for the round-off of the last bits.

Shape suffixes: B = sequences of a batch, L = positions of a stack, T = tokens of a stack, N = choices of a token, E =
experts, P = weights of an expert.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.text import counted
from studies.routing.trace import Array, LayerTrace, Similarity, Tokens, Trace, stack_of
from training.engine.batches import to_device
from training.engine.randomness import seed_everything
from training.export.held_out import HeldOut
from training.export.trained import Found, Trained
from training.monitoring.routers import RouterObserver

CHOICES = 2  # recorded of each token, first ones first; a third choice is not recorded
MEMBERS = ("expert_TN", "kept_TN", "gate_TN", "entropy_T", "logsumexp_T")

Recorded = dict[str, dict[str, Array]]  # of a batch: arrays of each stack and layer


@torch.no_grad()
def collect(found: Found, trained: Trained, held_out: HeldOut) -> Trace | None:
    """Return the trace on rank 0, None on others; collective over all ranks.

    Args:
        found: the model's folder.
        trained: the model.
        held_out: the same on all ranks, which share the batches.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = held_out.batches
    observer = RouterObserver(trained.model)
    own: dict[int, Recorded] = {}
    observer.start()
    for first in range(0, len(batches), world_size):
        # Experts on other ranks wait for a call of each rank: one without a batch of its own repeats the last.
        number = min(first + rank, len(batches) - 1)
        batch = to_device(batches[number], trained.device)
        seed_everything("routing", number)
        trained.model(**batch)
        if first + rank < len(batches):
            own[number] = _record(observer, trained, batch)
    observer.stop()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(own, gathered, dst=0)
    if gathered is None:
        return None
    of_batch = {number: recorded for part in gathered for number, recorded in part.items()}
    return _assemble(found, trained, held_out, [of_batch[number] for number in range(len(batches))])


def _record(observer: RouterObserver, trained: Trained, batch: dict[str, torch.Tensor]) -> Recorded:
    inputs_BL, labels_BM = batch["input_ids"], batch["labels"]
    token_of = {"encoder": inputs_BL, "decoder": trained.model.shift_right(labels_BM)}
    real_of = {"encoder": inputs_BL != int(trained.config.pad_token_id or 0), "decoder": labels_BM >= 0}
    recorded: Recorded = {}
    for stack, real_BL in real_of.items():
        row_T, position_T = real_BL.nonzero(as_tuple=True)
        of_stack = {"token_T": token_of[stack][real_BL], "example_T": row_T, "position_T": position_T}
        recorded[stack] = {name: part.cpu().numpy().astype(np.int32) for name, part in of_stack.items()}
    for layer, seen in observer.seen.items():
        decisions = seen.by_token(len(inputs_BL), CHOICES)
        real_BL = real_of[stack_of(layer)]
        recorded[layer] = {name: part[real_BL].cpu().numpy() for name, part in zip(MEMBERS, decisions, strict=True)}
        recorded[layer]["expert_TN"] = recorded[layer]["expert_TN"].astype(np.int16)
    return recorded


def _assemble(found: Found, trained: Trained, held_out: HeldOut, recorded: list[Recorded]) -> Trace:
    size = len(held_out.batches[0]["input_ids"])
    for number, of_batch in enumerate(recorded):
        for stack in ("encoder", "decoder"):
            of_batch[stack]["example_T"] += number * size
    joined = {
        name: {key: np.concatenate([of_batch[name][key] for of_batch in recorded]) for key in members}
        for name, members in recorded[0].items()
    }
    # Without those of padding alone, which fill the last batch of a task.
    real_X = np.unique(np.concatenate([joined[stack]["example_T"] for stack in ("encoder", "decoder")]))
    for stack in ("encoder", "decoder"):
        joined[stack]["example_T"] = np.searchsorted(real_X, joined[stack]["example_T"]).astype(np.int32)
    stacks = {stack: Tokens(**joined[stack]) for stack in ("encoder", "decoder")}
    layers = found.sparse_layers()
    ids = np.unique(np.concatenate([tokens.token_T for tokens in stacks.values()]))
    return Trace(
        source=str(found.name),
        step=trained.step,
        num_experts=trained.config.num_experts,
        routing=describe_routing(trained.config),
        domains=held_out.domains,
        domain_X=np.concatenate(held_out.domain_NB)[real_X].astype(np.int16),
        pieces=dict(zip(ids.tolist(), found.tokenizer.pieces(ids), strict=True)),
        stacks=stacks,
        layers={layer: LayerTrace(**joined[layer]) for layer in layers},
        similarity={layer: similarity(trained, layer) for layer in layers},
    )


def similarity(trained: Trained, layer: str) -> Similarity:
    """Return the cosines between the experts of a layer, from the files of the model."""
    gram_EE: Any = 0.0
    for weights in trained.layer_weights(layer, "experts").values():
        flat_EP = weights.flatten(1)
        gram_EE = gram_EE + (flat_EP @ flat_EP.T).double()
    (router_Ed,) = trained.layer_weights(layer, "router").values()
    return Similarity(_cosines(gram_EE), _cosines((router_Ed @ router_Ed.T).double()))


def _cosines(gram_EE: torch.Tensor) -> Array:
    norm_E = gram_EE.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    cosines: Array = (gram_EE / norm_E[:, None] / norm_E).float().numpy()
    return cosines


def describe_routing(config: Any) -> str:
    """Return in words how a model of this config serves tokens."""
    served = "every token is served by the experts that it chooses"
    if config.capacity != "dropless":
        served = f"capacity factor {config.eval_capacity_factor}, as in evaluations"
    stacks = {stack: config.stack_gating(decoder=stack == "decoder") for stack in ("encoder", "decoder")}
    gatings = list(dict.fromkeys(stacks.values()))
    named = (
        gatings[0] if len(gatings) == 1 else ", ".join(f"{gating} in the {stack}" for stack, gating in stacks.items())
    )
    return f"Gating {named}; {served}."


def describe(held_out: HeldOut, world_size: int) -> str:
    """Return in words what is run."""
    examples = sum(map(len, held_out.domain_NB))
    return f"{counted(examples, 'example')} of {', '.join(held_out.domains)}, on {counted(world_size, 'rank')}"
