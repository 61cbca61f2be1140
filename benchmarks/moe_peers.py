"""The sparse layers under comparison: ours, each peer configured for the same work, and the limit.

Each contender is a module that maps ``x [B, L, d]`` to ``y [B, L, d]`` and is differentiated through ``y`` alone.
Auxiliary losses are computed where a contender computes them, but not differentiated.

Shape suffixes: B = sequences, L = positions, E = experts, R = rows of all experts, r = rows of one expert, d = d_model.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from model.capacity import group_tokens
from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.layers.feed_forward import FeedForward
from model.moe.experts import Experts
from model.moe.layer import SparseFeedForward

GROUP = 2048  # tokens that are routed as one group, where a peer has groups
SLOTS = 1.25  # capacity slots per token


@dataclass(frozen=True)
class Case:
    """One cell of the comparison."""

    tokens: int
    experts: int
    d_model: int
    d_ff: int
    dtype: torch.dtype
    device: str

    @property
    def config(self) -> StMoeConfig:
        """The model's configuration: top-2 gating with the paper's random second choice."""
        return StMoeConfig(
            d_model=self.d_model,
            d_ff=self.d_ff,
            num_experts=self.experts,
            group_size=GROUP,
            train_capacity_factor=SLOTS,
            feed_forward="geglu",
        )

    @property
    def rows(self) -> int:
        """Rows of all experts, R."""
        return self.experts * int(min(self.tokens, GROUP) * SLOTS / self.experts) * max(1, self.tokens // GROUP)


class Ours(nn.Module):
    """``model.moe.layer.SparseFeedForward``, the layer that the project trains."""

    def __init__(self, case: Case):
        super().__init__()
        self.layer = SparseFeedForward(case.config)
        initialize_weights(self.layer, case.config, seed=0)

    def forward(self, x: Tensor) -> Tensor:
        """Route the tokens, run the experts, combine: ``[B, L, d]`` → ``[B, L, d]``."""
        return self.layer(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))[0]


class Limit(nn.Module):
    """The experts alone: their matrix products on rows sorted by expert, without routing, dispatch or combine."""

    def __init__(self, case: Case):
        super().__init__()
        self.experts = Experts(case.config, case.experts)
        initialize_weights(self.experts, case.config, seed=0)

    def forward(self, rows_Rd: Tensor) -> Tensor:
        """Run the experts: ``[R, d]`` → ``[R, d]``."""
        return self.experts(rows_Rd)


class UnbindLimit(Limit):
    """The limit as three ``linear`` calls per expert, differentiated by autograd."""

    def forward(self, rows_Rd: Tensor) -> Tensor:
        """Run the experts: ``[R, d]`` → ``[R, d]``."""
        experts, linear = self.experts, nn.functional.linear
        weights = zip(experts.w1.unbind(), experts.w2.unbind(), experts.w3.unbind(), strict=True)
        parts = zip(rows_Rd.chunk(experts.num_local), weights, strict=True)
        return torch.cat([linear(_geglu(linear(rows, w1), linear(rows, w3)), w2) for rows, (w1, w2, w3) in parts])


class BmmLimit(Limit):
    """The limit as batched matrix products."""

    def forward(self, rows_Rd: Tensor) -> Tensor:
        """Run the experts: ``[R, d]`` → ``[R, d]``."""
        rows_Erd, experts = rows_Rd.view(self.experts.num_local, -1, rows_Rd.shape[-1]), self.experts
        first, second = rows_Erd @ experts.w1.mT, rows_Erd @ experts.w3.mT
        return (_geglu(first, second) @ experts.w2.mT).flatten(0, 1)


def _geglu(first: Tensor, second: Tensor) -> Tensor:
    return nn.functional.gelu(first, approximate="tanh") * second


class _First(nn.Module):
    """Adapter that returns the first output of a module.

    Args:
        module: the peer's layer.
        groups: tokens per routing group, for a layer that routes each row of its batch by itself; None: keep the batch.
        autocast: dtype of autocast; None: off.
    """

    def __init__(self, module: nn.Module, groups: int | None = None, autocast: torch.dtype | None = None):
        super().__init__()
        self.module, self.groups, self.autocast = module, groups, autocast

    def forward(self, x: Tensor) -> Tensor:
        grouped = x if self.groups is None else x.reshape(-1, self.groups, x.shape[-1])
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.module(grouped)
        return (output[0] if isinstance(output, tuple) else output).view(x.shape)


def make_deepspeed_moe(case: Case) -> nn.Module:
    """Make ``deepspeed.moe.layer.MoE`` with k = 2 and our dense GEGLU as experts; its capacity factor is per choice."""
    from deepspeed.moe.layer import MoE

    moe = MoE(
        case.d_model, FeedForward(case.config), num_experts=case.experts, k=2, capacity_factor=SLOTS / 2, min_capacity=4
    )
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.02)
    return _First(moe)


def make_st_moe_pytorch(case: Case) -> nn.Module:
    """Make ``st_moe_pytorch.MoE``: GEGLU with biases and exact gelu; its groups are the rows of its batch.

    Its gating returns float32 in any dtype, which bf16 experts do not accept: in bf16 it runs under autocast.

    Raises:
        SystemExit: the package is not installed.
    """
    st_moe = _require("st_moe_pytorch")
    mult = case.d_ff * 3 / 2 / case.d_model + 1e-6
    moe = st_moe.MoE(case.d_model, num_experts=case.experts, expert_hidden_mult=mult, capacity_factor_train=SLOTS)
    assert moe.experts.experts[0].net[0].out_features == 2 * case.d_ff
    autocast = case.dtype if case.dtype == torch.bfloat16 else None
    return _First(moe, group_tokens(case.tokens, GROUP), autocast)


def make_hf_switch(case: Case) -> nn.Module:
    """Make Hugging Face's Switch layer: top-1, ReLU of 1.5 times the width (equal parameters), one row per token."""
    from transformers.models.switch_transformers.configuration_switch_transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    group = group_tokens(int(case.tokens * SLOTS), GROUP)
    config = SwitchTransformersConfig(
        d_model=case.d_model,
        d_ff=case.d_ff * 3 // 2,
        num_experts=case.experts,
        expert_capacity=int(group * SLOTS / case.experts),
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    moe = SwitchTransformersSparseMLP(config)
    return _First(moe, group)


def make_deepspeed_auto_ep(case: Case) -> nn.Module:
    """Make DeepSpeed's own ``AutoEPMoELayer``: top-2 without a capacity limit, two rows per token."""
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.module_inject.auto_ep_presets.base import MoELayerSpec
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    source = MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=case.d_model,
            intermediate_size=case.d_ff,
            num_local_experts=case.experts,
            num_experts_per_tok=2,
        )
    )
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.02)
    spec = MoELayerSpec(
        moe_module_name="moe",
        model_family="mixtral",
        router_name="gate",
        experts_name="experts",
        expert_storage="fused_3d",
        expert_w1_name="gate_up_proj",
        expert_w2_name="down_proj",
        expert_w3_name=None,
        num_experts=case.experts,
        top_k=2,
        hidden_size=case.d_model,
        ffn_hidden_size=case.d_ff,
        score_func="softmax",
        score_apply="post",
        route_norm=True,
        gate_bias=False,
        return_router_logits=False,
        router_logits_capture_target="none",
        router_logits_capture_index=None,
        router_logits_capture_layer_name=None,
        has_shared_experts=False,
        shared_experts_name="",
        expert_activation="geglu_tanh",
    )
    return AutoEPMoELayer(spec, source, ep_size=1, ep_rank=0, config=AutoEPConfig(enabled=True))


@dataclass(frozen=True)
class Contender:
    """A sparse layer of the comparison; it gets as many tokens as fill 1.25 T rows of its experts.

    Args:
        make: builds the layer.
        rows_per_token: rows of its experts per token.
        note: its settings, for the results.
    """

    make: Callable[[Case], nn.Module]
    rows_per_token: float
    note: str


CONTENDERS = {
    "ours": Contender(Ours, SLOTS, "SparseFeedForward: top-2, random second choice, groups of 2048"),
    "deepspeed MoE": Contender(make_deepspeed_moe, SLOTS, "k = 2, capacity_factor 0.625, experts: our dense GEGLU"),
    "st-moe-pytorch": Contender(make_st_moe_pytorch, SLOTS, "top-2, groups of 2048, GEGLU with biases and exact gelu"),
    "HF Switch": Contender(make_hf_switch, 1.0, "top-1 on 1.25 T tokens; ReLU of 1.5 x the width: equal parameters"),
    "AutoEPMoELayer": Contender(make_deepspeed_auto_ep, 2.0, "top-2, no capacity, on 0.625 T tokens; GEGLU"),
}
LIMITS: dict[str, Callable[[Case], nn.Module]] = {"fused": Limit, "linear": UnbindLimit, "bmm": BmmLimit}


def build(make: Callable[[Case], Any], case: Case) -> nn.Module:
    """Build the module in the case's dtype and on its device, in training mode."""
    torch.manual_seed(0)
    return make(case).to(device=case.device, dtype=case.dtype).train()


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(
            f"error: {name} cannot be imported ({error}): pip install --no-deps -r requirements-benchmarks.txt"
        ) from None
