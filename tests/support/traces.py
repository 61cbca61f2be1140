"""Traces of routing without a model."""

from collections.abc import Sequence

import numpy as np

from studies.routing.trace import LayerTrace, Similarity, Tokens, Trace

PIECES = {
    0: "<pad>", 1: "</s>", 2: "<unk>", 3: "▁", 4: "▁the", 5: "▁Lon", 6: "don", 7: ".", 8: "▁In", 9: "▁walk", 10: "ed",
    11: "▁19", 12: "45", 13: ",", 14: "▁cat", 15: "s", 16: "▁and", 17: "▁seven", 18: "▁<b>", 19: "'",
    98: "<extra_id_1>", 99: "<extra_id_0>",
}  # fmt: skip


def trace_of(
    encoder: Sequence[Sequence[int]], decoder: Sequence[Sequence[int]], *, experts: int = 4, seed: int = 0,
    domains: Sequence[str] = ("validation",), layers: Sequence[str] = ("encoder_1", "decoder_1"),
) -> Trace:  # fmt: skip
    """Return a trace of these examples, ids of ``PIECES``, with drawn experts; examples go to the domains in turn."""
    rng = np.random.default_rng(seed)
    stacks = {
        stack: Tokens(
            np.array([token for example in examples for token in example], np.int32),
            np.repeat(np.arange(len(examples)), list(map(len, examples))).astype(np.int32),
            np.array([position for example in examples for position in range(len(example))], np.int32),
        )
        for stack, examples in (("encoder", encoder), ("decoder", decoder))
    }
    routed = {}
    for layer in layers:
        tokens = len(stacks[layer.partition("_")[0]].token_T)
        expert_TN = rng.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)[:, :2].astype(np.int16)
        gate_T = rng.uniform(0.5, 1, tokens).astype(np.float32)
        routed[layer] = LayerTrace(
            expert_TN,
            np.ones((tokens, 2), bool),
            np.stack((gate_T, 1 - gate_T), axis=1),
            rng.uniform(0, np.log(experts), tokens).astype(np.float32),
            rng.normal(size=tokens).astype(np.float32),
        )
    cosines = np.eye(experts, dtype=np.float32)
    return Trace(
        source="runs/drawn", step=7, num_experts=experts, routing="Drawn.", domains=list(domains),
        domain_X=(np.arange(len(encoder)) % len(domains)).astype(np.int16), pieces=PIECES, stacks=stacks, layers=routed,
        similarity=dict.fromkeys(layers, Similarity(cosines, cosines)),
    )  # fmt: skip


def drawn_trace(examples: int = 12, *, experts: int = 4, seed: int = 0, domains: Sequence[str] = ("a", "b")) -> Trace:
    """Return a trace of drawn ids, of examples of several lengths."""
    rng = np.random.default_rng(seed)
    ids = np.array(sorted(PIECES))
    encoder = [rng.choice(ids[1:], rng.integers(8, 20)).tolist() for _ in range(examples)]
    decoder = [[0, *rng.choice(ids[2:], rng.integers(3, 9)).tolist()] for _ in range(examples)]
    return trace_of(encoder, decoder, experts=experts, seed=seed, domains=domains)
