"""Every figure of the routers equals a slow recomputation from the decisions themselves, on two ranks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch

from model.moe import layer
from model.moe.statistics import BINS
from tests.support.gatings import GATINGS
from tests.support.ranks import run_ranks
from tests.support.small import global_batch, small_config
from training.engine.build import build_engine
from training.engine.shares import reduce_shares
from training.engine.step import update
from training.monitoring.monitors.routing import RouterHealth

KINDS = ("top_n", "flaxformer_prioritized", "expert_choice", "dropless")
EXPERTS = 4
Dump = dict[str, Any]


def recorded(found: list[Dump], route: Callable[..., Any]) -> Callable[..., Any]:
    """``route``, which also keeps what it decided, token by token."""

    def routed(logits_GSE: torch.Tensor, mask_GS: torch.Tensor, *args: Any, **options: Any) -> Any:
        routing = route(logits_GSE, mask_GS, *args, **options)
        requested = routing.requested_NGS
        found.append(
            {
                "stack": "decoder" if options["decoder"] else "encoder",
                "logits": logits_GSE.detach().double().flatten(0, 1),
                "real": mask_GS.flatten(),
                "expert": routing.expert_NGS.flatten(1),
                "kept": routing.kept_NGS.flatten(1),
                "requested": None if requested is None else requested.flatten(1),
                "slots": EXPERTS * len(mask_GS) * routing.capacity,
                "balance": routing.load_balance_loss.item(),
                "z": routing.router_z_loss.item(),
            }
        )
        return routing

    return routed


def observe(folder: str) -> list[tuple[dict[str, float], dict[str, Any], list[Dump]]]:
    """Columns, the row of pictures and this rank's decisions, for each kind: one step of two micro-batches."""
    rank, results = dist.get_rank(), []
    batches = [{name: rows[4 * i : 4 * i + 4] for name, rows in global_batch(0, 16).items()} for i in range(4)]
    for kind in KINDS:
        config = small_config(
            Path(folder),
            model=GATINGS[kind] | {"train_capacity_factor": 0.75, "min_capacity": 1, "sparse_step": 2},
            parallel={"expert_parallel_size": 2},
            training={"global_batch_size": 16},
        )
        engine = build_engine(config, 2, "cpu")
        for module in engine.module.modules():
            if isinstance(module, layer.Router):
                module.weight.data.mul_(20.0)  # so that probabilities differ, and experts overflow
        found: list[Dump] = []
        health, route = RouterHealth(config.st_moe_config()), layer.route
        layer.route = recorded(found, route)
        terms, _ = update(engine, batches[2 * rank : 2 * rank + 2], 0, 0, 0, rank, observed=True)
        layer.route = route
        (reduced,) = reduce_shares([health.share(terms)], "cpu")
        unobserved, _ = update(engine, batches[2 * rank : 2 * rank + 2], 0, 0, 1, rank)
        assert not unobserved.routers
        results.append((health.columns(reduced), health.picture(), found))
        assert health.picture() == {}
    return results


def by_layer(dumps: list[Dump], layers: list[str]) -> dict[str, list[Dump]]:
    """The calls of each layer: per micro-batch the encoder's, then the decoder's."""
    calls: dict[str, list[Dump]] = {name: [] for name in layers}
    for number, dump in enumerate(dumps):
        calls[layers[number % len(layers)]].append(dump)
    return calls


def slow_figures(calls: list[Dump], top_n: int) -> dict[str, Any]:
    """The figures of one layer, token by token, in Python's floats."""
    tokens = dropped = first = first_dropped = other = other_dropped = 0
    entropy = confidence = log_z = 0.0
    most, load, histogram = -math.inf, [0] * EXPERTS, [0] * BINS
    for call in calls:
        for t in (t for t, real in enumerate(call["real"].tolist()) if real):
            logits = call["logits"][t].tolist()
            z = math.log(sum(math.exp(x) for x in logits))
            p = [math.exp(x - z) for x in logits]
            tokens += 1
            entropy -= sum(q * math.log(q) for q in p)
            confidence += max(p)
            log_z += z
            most = max(most, z)
            for q in p:
                histogram[min(int(q * BINS), BINS - 1)] += 1
            kept = call["kept"][:, t].tolist()
            dropped += not any(kept)
            if call["requested"] is None:
                for expert, has in zip(call["expert"][:, t].tolist(), kept, strict=True):
                    load[expert] += has
            else:
                load[p.index(max(p))] += 1
                requested = call["requested"][:, t].tolist()
                first += 1
                first_dropped += not kept[0]
                other += sum(requested[1:])
                other_dropped += sum(asked and not has for asked, has in zip(requested[1:], kept[1:], strict=True))
    mean = sum(load) / EXPERTS
    figures = {
        "dropped_fraction": dropped / tokens,
        "router_entropy": entropy / tokens,
        "router_confidence": confidence / tokens,
        "router_logsumexp": log_z / tokens,
        "max_router_logsumexp": most,
        "expert_load_cv": math.sqrt(sum((n - mean) ** 2 for n in load) / EXPERTS) / mean,
        "dead_experts": sum(n < mean / 100 for n in load),
        "load_balance_loss": sum(call["balance"] for call in calls) / len(calls),
        "router_z_loss": sum(call["z"] for call in calls) / len(calls),
    }
    if first:
        figures |= {
            "dropped_first_choices": first_dropped / first,
            "requested_second_choices": other / tokens / (top_n - 1),
            "dropped_second_choices": other_dropped / max(other, 1),
        }
    return figures | {"load": [n / sum(load) for n in load], "probabilities": histogram}


@pytest.mark.distributed
def test_figures_equal_a_slow_recomputation_from_the_decisions(tmp_path: Path):
    ranks = run_ranks(observe, 2, tmp_path, str(tmp_path))
    layers = [f"{stack}_{block}" for stack in ("encoder", "decoder") for block in (1, 3)]
    for kind, (columns, pictures, first), (others, other_pictures, second) in zip(KINDS, *ranks, strict=True):
        assert columns == others and pictures == other_pictures, kind
        calls = by_layer(first, layers)
        for name, further in by_layer(second, layers).items():
            calls[name] += further
        expected: dict[str, Any] = {}
        for name in layers:
            assert len(calls[name]) == 4 and {call["stack"] for call in calls[name]} == {name.partition("_")[0]}
            assert not all(call["real"].all() for call in calls[name]), "padding in the batch"
            expected |= {f"{figure}/{name}": value for figure, value in slow_figures(calls[name], 2).items()}
        served = sum(int(call["kept"].sum()) for name in layers for call in calls[name])
        slots = served if kind == "dropless" else sum(call["slots"] for name in layers for call in calls[name])
        expected["capacity_padding"] = 1 - served / slots
        found = columns | pictures
        assert found.keys() == expected.keys(), kind
        for column, value in expected.items():
            assert found[column] == pytest.approx(value, rel=1e-5, abs=1e-7), (kind, column)
        dropped = [value for name, value in columns.items() if name.startswith("dropped_fraction")]
        assert (max(dropped) == 0) == (kind == "dropless"), kind


def test_a_dense_model_has_no_figures(tmp_path: Path):
    health = RouterHealth(small_config(tmp_path, model={"num_experts": 0}).st_moe_config())
    assert health.picture() == {}
    assert health.layers == []
