"""The architecture of an ST-MoE model: the ``model`` section of a run's configuration, with its checks.

Imports neither torch nor transformers, so that a run's configuration is checked at once.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

Gating = Literal["top_n", "flaxformer", "expert_choice"]


def documented(default: Any, doc: str) -> Any:
    """Return a dataclass field; ``train.py --help`` prints ``doc``, its meaning and unit, and the default."""
    return field(default=default, metadata={"doc": doc})


@dataclass(kw_only=True, repr=False)
class Architecture:
    """Architecture of an ST-MoE encoder-decoder (Zoph et al. 2022) or, with ``num_experts=0``, of dense T5.1.1.

    Raises:
        ValueError: a value is outside its range, or contradicts another: names key, value and fix.
    """

    vocab_size: int = documented(32128, "Rows of the embedding and of the output head; a multiple of 128.")
    d_model: int = documented(768, "Width of the residual stream.")
    d_ff: int = documented(2048, "Hidden width of every feed-forward, dense or expert.")
    d_kv: int = documented(64, "Width of one attention head.")
    num_heads: int = documented(12, "Attention heads.")
    num_layers: int = documented(12, "Encoder blocks, not counting the extra feed-forwards.")
    num_decoder_layers: int | None = documented(None, "Decoder blocks; null: as many as num_layers.")
    feed_forward: Literal["geglu", "relu"] = documented(
        "geglu",
        "geglu: (gelu_tanh(x W_in) * (x W_gate)) W_out; relu: relu(x W_in) W_out, of equal FLOPs at 1.5 x d_ff.",
    )
    feed_forward_bias: Literal["none", "multiplicative", "additive"] = documented(
        "none", "Learned vector of size d_ff that multiplies, or is added to, the hidden activation before W_out."
    )
    rms_norm_scale: bool = documented(True, "Whether RMSNorm has a learned scale.")
    rms_norm_epsilon: float | int = documented(1e-6, "Added to the mean square in RMSNorm.")
    relative_attention_num_buckets: int = documented(32, "Buckets of the relative position bias.")
    relative_attention_max_distance: int = documented(
        128, "Distance in tokens from which all positions share the last bucket."
    )
    dropout_rate: float | int = documented(0.0, "Dropout after every sub-layer and on embeddings; 0 for pretraining.")
    expert_dropout_rate: float | int = documented(
        0.0, "Dropout of the experts' hidden activation, in front of W_out; the paper fine-tunes with up to 0.4."
    )

    num_experts: int = documented(0, "Experts of each sparse layer; 0: a dense model.")
    sparse_step: int = documented(4, "Blocks whose index % sparse_step is sparse_step - 1 have a sparse feed-forward.")
    extra_feed_forward: Literal["after", "before", "none"] = documented(
        "after", "Position of the extra dense feed-forward relative to each sparse layer (sparse-dense)."
    )
    gating: Gating = documented(  # noqa: RUF009 - it returns a field
        "top_n",
        "top_n: as in the paper, weights are normalized over the top_n experts; second_policy decides on those after "
        "the best. flaxformer: all top_n experts, raw probabilities as weights, rounded capacity. expert_choice: each "
        "expert takes its most probable tokens; no load-balance loss; encoder only, see decoder_gating.",
    )
    decoder_gating: Gating | None = documented(  # noqa: RUF009
        None,
        "Gating of the decoder: top_n or flaxformer. null: as gating, but top_n if gating is expert_choice, which "
        "would leak future tokens.",
    )
    batch_prioritized: bool = documented(
        False,
        "Encoder layers fill expert capacity by descending top-1 probability within the group; decoder layers fill it "
        "from left to right.",
    )
    top_n: int = documented(2, "Experts that a token may use: 1, 2 or 3.")
    second_policy: Literal["random", "all", "none", "threshold"] = documented(
        "random",
        "Whether top_n gating requests an expert after the best. random: with probability min(1, gate / "
        "second_threshold); all: always; none: never; threshold: if gate exceeds second_threshold.",
    )
    second_threshold: float | int = documented(0.2, "Gate from which an expert after the best is always requested.")
    capacity: Literal["factor", "dropless"] = documented(
        "factor",
        "factor: the capacity factors limit the tokens of an expert, and further ones are dropped; dropless: every "
        "request is served.",
    )
    train_capacity_factor: float | int = documented(
        1.25, "Capacity slots per expert and group in training: int(tokens of the group x factor / num_experts)."
    )
    eval_capacity_factor: float | int = documented(2.0, "As train_capacity_factor, in evaluation and generation.")
    min_capacity: int = documented(4, "Least number of capacity slots per expert and group.")
    group_size: int = documented(2048, "Largest number of tokens that are routed as one group.")
    router_jitter: float | int = documented(
        0.0, "In training, multiply router inputs by noise from U[1 - router_jitter, 1 + router_jitter]."
    )
    router_precision: Literal["fp32", "bf16"] = documented(
        "fp32", "bf16 rounds the router's inputs, weights and logits; for studies of instability."
    )
    load_balance_coefficient: float | int = documented(1e-2, "c_B, the weight of the load-balance loss.")
    router_z_coefficient: float | int = documented(1e-3, "c_Z, the weight of the router z-loss.")
    output_z_coefficient: float | int = documented(1e-4, "Weight of the z-loss of the output head.")
    router_loss_reduction: Literal["mean", "sum"] = documented(
        "mean", "How L_B and L_Z are reduced over the sparse layers."
    )
    initializer_scale: float | int = documented(
        0.1, "s of the truncated normal initializer: its standard deviation is sqrt(s / fan_in)."
    )
    router_initializer_factor: float | int = documented(
        1.0, "Factor of the routers' initial standard deviation, 0.02; above 1 for studies of large router logits."
    )

    def __post_init__(self) -> None:
        self.resolve_defaults()
        self.validate_architecture()

    def resolve_defaults(self) -> None:
        """Set the fields of the decoder that are null to what they follow from."""
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.decoder_gating is None:
            self.decoder_gating = "top_n" if self.gating == "expert_choice" else self.gating

    def validate_architecture(self) -> None:
        """Check ranges and contradictions. Raises ValueError."""
        positive = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "sparse_step", "min_capacity",
                    "group_size", "train_capacity_factor", "eval_capacity_factor", "second_threshold",
                    "rms_norm_epsilon", "initializer_scale", "router_initializer_factor",
                    "num_decoder_layers")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"model.{name} = {value} must be greater than 0")
        for name in ("num_experts", "load_balance_coefficient", "router_z_coefficient", "output_z_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} = {getattr(self, name)} must be 0 or greater")
        for name in ("dropout_rate", "expert_dropout_rate", "router_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)} must be at least 0 and less than 1")
        if self.feed_forward == "relu" and self.d_ff % 2:
            raise ValueError(f"model.d_ff = {self.d_ff} must be even with model.feed_forward = relu")
        if self.relative_attention_num_buckets % 4 or self.relative_attention_num_buckets <= 0:
            raise ValueError(
                f"model.relative_attention_num_buckets = {self.relative_attention_num_buckets} must be a multiple of 4"
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ValueError(
                f"model.relative_attention_max_distance = {self.relative_attention_max_distance} must be greater than "
                f"half of model.relative_attention_num_buckets = {self.relative_attention_num_buckets}"
            )
        if self.num_experts == 1:
            raise ValueError("model.num_experts = 1 is not a sparse model: set 0 for a dense one, or 2 or more")
        if self.num_experts and not 1 <= self.top_n <= min(3, self.num_experts):
            raise ValueError(
                f"model.top_n = {self.top_n} must be 1, 2 or 3 and at most model.num_experts = {self.num_experts}"
            )
        self._validate_gating()
        if self.num_experts and max(self.num_layers, self.num_decoder_layers or 0) < self.sparse_step:
            raise ValueError(
                f"model.sparse_step = {self.sparse_step} leaves no sparse layer in {self.num_layers} blocks: lower "
                "model.sparse_step, or set model.num_experts = 0"
            )

    def _validate_gating(self) -> None:
        if self.decoder_gating == "expert_choice":
            raise ValueError(
                "model.decoder_gating = expert_choice would leak future tokens, since an expert chooses among all "
                "tokens of a group: set top_n or flaxformer"
            )
        if self.capacity == "dropless" and self.gating == "expert_choice":
            raise ValueError(
                "model.capacity = dropless contradicts model.gating = expert_choice, where the capacity factor decides "
                "how many tokens each expert takes: set model.capacity = factor, or another model.gating"
            )
        for key, value in (("gating", "expert_choice"), ("capacity", "dropless")):
            if self.batch_prioritized and getattr(self, key) == value:
                raise ValueError(
                    f"model.batch_prioritized = true has no effect with model.{key} = {value}, where tokens do not "
                    "compete for capacity: set false"
                )
        if self.second_policy != "random" and "top_n" not in (self.gating, self.decoder_gating):
            raise ValueError(
                f"model.second_policy = {self.second_policy} has no effect with model.gating = {self.gating}, which "
                "always requests all top_n experts: remove it, or set model.gating = top_n"
            )

    def stack_gating(self, *, decoder: bool) -> Gating:
        """Return the gating of the decoder's or the encoder's sparse layers."""
        assert self.decoder_gating is not None
        return self.decoder_gating if decoder else self.gating

    def is_sparse_layer(self, index: int) -> bool:
        """Return whether block ``index`` (from 0) of a stack has a sparse feed-forward."""
        return self.num_experts > 0 and index % self.sparse_step == self.sparse_step - 1

    def has_dense_feed_forward(self) -> bool:
        """Return whether any feed-forward is dense: that of a block, or one beside a sparse layer."""
        assert self.num_decoder_layers is not None
        blocks = self.num_layers + self.num_decoder_layers
        sparse = len(self.sparse_layer_names())
        return sparse < blocks or self.extra_feed_forward != "none"

    def sparse_layer_names(self) -> list[str]:
        """Return ``<stack>_<block>`` of every sparse layer, such as ``encoder_1``: those of the encoder come first."""
        assert self.num_decoder_layers is not None
        stacks = (("encoder", self.num_layers), ("decoder", self.num_decoder_layers))
        return [f"{stack}_{i}" for stack, blocks in stacks for i in range(blocks) if self.is_sparse_layer(i)]


def documented_fields() -> list[Field]:
    """Return the fields of the ``model`` section, in order, each with ``metadata["doc"]``."""
    return list(fields(Architecture))
