"""ST-MoE as a Hugging Face model: ``forward()`` with the complete objective, ``generate()`` with a key-value cache.

Shape suffixes: B = sequences, L = encoder positions, M = decoder positions, V = vocabulary, d = d_model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from model.config import StMoeConfig
from model.initialization import initialize_module
from model.losses import IGNORED_LABEL, LossDivisors, RouterLosses, cross_entropy_and_z
from model.moe.layer import SparseFeedForward
from model.transformer import SparseFactory, Stack, StackOutput


@dataclass
class StMoeOutput(Seq2SeqLMOutput):
    """Hugging Face's output with the unweighted terms of the objective, float32 scalars; None without labels.

    ``loss = cross_entropy + c_B load_balance_loss + c_Z router_z_loss + c_O output_z_loss``. The router losses are the
    mean (or sum, ``router_loss_reduction``) over the sparse layers, 0 in a dense model. ``dropped_fraction`` is the
    fraction of real tokens, over all sparse layers, that no expert processes; ``max_router_logit`` is the largest
    logit of all routers.
    """

    cross_entropy: Tensor | None = None
    load_balance_loss: Tensor | None = None
    router_z_loss: Tensor | None = None
    output_z_loss: Tensor | None = None
    dropped_fraction: Tensor | None = None
    max_router_logit: Tensor | None = None


class EmbeddedEncoder(nn.Module):
    """The encoder with the interface that ``generate()`` expects: token ids in, hidden states out.

    It shares the model's modules and is not registered in the model, so it adds no parameters.
    """

    def __init__(self, shared: nn.Embedding, encoder: Stack, pad_token_id: int):
        super().__init__()
        self.shared, self.encoder, self.pad_token_id = shared, encoder, pad_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> StackOutput:
        """Encode ``input_ids [B, L]`` into hidden states ``[B, L, d]``; the mask is that of the model's forward."""
        mask = input_ids != self.pad_token_id if attention_mask is None else attention_mask
        return self.encoder(self.shared(input_ids), mask.bool(), mask)


class StMoeForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder-decoder with one input embedding and an untied output head; ``make_sparse`` builds its sparse layers."""

    config_class = StMoeConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: StMoeConfig, make_sparse: SparseFactory = SparseFeedForward):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, decoder=False, make_sparse=make_sparse)
        self.decoder = Stack(config, decoder=True, make_sparse=make_sparse)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding that encoder and decoder share."""
        return self.shared

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the shared embedding."""
        self.shared = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output head, which is not tied to the embedding."""
        return self.lm_head

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder that ``generate()`` calls with token ids."""
        return EmbeddedEncoder(self.shared, self.encoder, self.config.pad_token_id)

    def shift_right(self, labels_BM: Tensor) -> Tensor:
        """Make decoder inputs from labels: the start token, then all labels but the last; ignored ones become pad."""
        start = labels_BM.new_full((len(labels_BM), 1), self.config.decoder_start_token_id)
        shifted = torch.cat((start, labels_BM[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Call ``shift_right``; Hugging Face's collators look for this name."""
        return self.shift_right(labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: StackOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        loss_divisors: LossDivisors | None = None,
        **_: Any,
    ) -> StMoeOutput:
        """Compute the logits and, with labels, the objective (Zoph et al. 2022, equation 6).

        Args:
            input_ids: int64 ``[B, L]``.
            attention_mask: 1 for real tokens, ``[B, L]``; None: all tokens but padding.
            decoder_input_ids: int64 ``[B, M]``; None: ``shift_right(labels)``.
            decoder_attention_mask: 1 for real decoder tokens, cached ones included; None: attention is only causal, and
                the routers take the positions with a target as real or, without labels, all tokens but padding.
            encoder_outputs: output of an earlier call of the encoder, in place of ``input_ids``.
            past_key_values: cache of the decoder, updated in place.
            labels: int64 ``[B, M]``, -100 where there is no target.
            use_cache: whether to return a cache; None: ``config.use_cache`` in evaluation mode and without labels.
            loss_divisors: see ``LossDivisors``; None: the real tokens of this call.

        Returns:
            ``logits [B, M, V]``, the loss and its terms (with labels), the encoder's output ``[B, L, d]``, the cache.

        Raises:
            ValueError: neither ``input_ids`` nor ``encoder_outputs``, or neither labels nor ``decoder_input_ids``.
        """
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("forward() needs input_ids or encoder_outputs")
            if attention_mask is None:
                attention_mask = input_ids != self.config.pad_token_id
            encoder_outputs = self.encoder(
                self.shared(input_ids),
                attention_mask.bool(),
                attention_mask,
                divisor=None if loss_divisors is None else loss_divisors.encoder,
            )
        memory_BLd = encoder_outputs[0]
        encoder_losses = getattr(encoder_outputs, "router_losses", None) or ()

        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("forward() needs decoder_input_ids or labels")
            decoder_input_ids = self.shift_right(labels)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        decoded = self.decoder(
            self.shared(decoder_input_ids),
            self._real_decoder_tokens(decoder_input_ids, decoder_attention_mask, labels, past_key_values),
            decoder_attention_mask,
            memory_BLd,
            attention_mask,
            past_key_values,
            divisor=None if loss_divisors is None else loss_divisors.decoder,
        )
        output = StMoeOutput(
            logits=self.lm_head(decoded.last_hidden_state),
            past_key_values=past_key_values,
            encoder_last_hidden_state=memory_BLd,
        )
        if labels is not None:
            divisor = (labels != IGNORED_LABEL).sum().clamp(min=1) if loss_divisors is None else loss_divisors.decoder
            self._add_losses(output, labels, divisor, (*encoder_losses, *(decoded.router_losses or ())))
        return output

    def _real_decoder_tokens(
        self,
        ids_BM: Tensor,
        attention_mask: Tensor | None,
        labels_BM: Tensor | None,
        past_key_values: EncoderDecoderCache | None,
    ) -> Tensor:
        """Return a bool mask ``[B, M]`` of the decoder tokens that the routers treat as real."""
        if attention_mask is not None:
            return attention_mask[:, -ids_BM.shape[1] :].bool()
        if labels_BM is not None:
            return labels_BM != IGNORED_LABEL
        real = ids_BM != self.config.pad_token_id
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            real[:, 0] = True  # the start token is the pad token
        return real

    def _add_losses(
        self, output: StMoeOutput, labels: Tensor, divisor: Tensor, layers: tuple[RouterLosses, ...]
    ) -> None:
        assert output.logits is not None
        config = self.config
        output.cross_entropy, output.output_z_loss = cross_entropy_and_z(output.logits, labels, divisor)
        zero = output.cross_entropy.new_zeros(())
        balance = torch.stack([layer.load_balance for layer in layers]) if layers else zero
        z = torch.stack([layer.z for layer in layers]) if layers else zero
        mean = config.router_loss_reduction == "mean"
        output.load_balance_loss = balance.mean() if mean else balance.sum()
        output.router_z_loss = z.mean() if mean else z.sum()
        real = torch.stack([layer.real_tokens for layer in layers]).sum() if layers else zero
        dropped = torch.stack([layer.dropped_tokens for layer in layers]).sum() if layers else zero
        output.dropped_fraction = dropped / real.clamp(min=1)
        output.max_router_logit = torch.stack([layer.max_logit for layer in layers]).amax() if layers else zero
        output.loss = (
            output.cross_entropy
            + config.load_balance_coefficient * output.load_balance_loss
            + config.router_z_coefficient * output.router_z_loss
            + config.output_z_coefficient * output.output_z_loss
        )
