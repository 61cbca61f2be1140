"""ST-MoE as a Hugging Face model: ``forward()`` with the complete objective, ``generate()`` with a key-value cache.

Shape suffixes: B = sequences, L = encoder positions, M = decoder positions, V = vocabulary, d = d_model.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from model.config import StMoeConfig
from model.encoder import EmbeddedEncoder, refuse_attentions
from model.initialization import initialize_module
from model.losses import IGNORED_LABEL, LossDivisors, RouterLosses, cross_entropy_and_z
from model.moe.layer import SparseFeedForward
from model.standalone.save import AUTO_MAP, save_code
from model.transformer import SparseFactory, Stack, StackOutput


@dataclass
class StMoeOutput(Seq2SeqLMOutput):
    """Hugging Face's output with the unweighted terms of the objective, float32 scalars; None without labels.

    ``loss = cross_entropy + c_B load_balance_loss + c_Z router_z_loss + c_O output_z_loss``. The router losses are the
    mean (or sum, ``router_loss_reduction``) over the sparse layers, 0 in a dense model. ``dropped_fraction`` is the
    fraction of real tokens, over all sparse layers, that no expert processes; ``max_router_logit`` is the largest
    logit of all routers. ``router_statistics``, after ``observe_routers``: one row per sparse layer.
    """

    cross_entropy: Tensor | None = None
    load_balance_loss: Tensor | None = None
    router_z_loss: Tensor | None = None
    output_z_loss: Tensor | None = None
    dropped_fraction: Tensor | None = None
    max_router_logit: Tensor | None = None
    router_statistics: Tensor | None = None


class StMoeForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder-decoder with one input embedding and an untied output head; ``make_sparse`` builds its sparse layers."""

    config_class = StMoeConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["router"]
    _tied_weights_keys = {"lm_head.weight": "shared.weight"}  # with config.tie_word_embeddings, off by default

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

    def observe_routers(self, observed: bool) -> None:
        """Let calls with labels return, or no longer return, ``router_statistics [layers, K]``, see ``moe.statistics``.

        Rows are ordered as ``config.sparse_layer_names()``.
        """
        for module in self.modules():
            if isinstance(module, SparseFeedForward):
                module.observed = observed

    def get_encoder(self, modality: str | None = None) -> EmbeddedEncoder:
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

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save weights, config and the code that loads them without this project (``trust_remote_code=True``).

        Args:
            save_directory: created if missing.
            is_main_process: whether this process writes files.
            kwargs: of ``PreTrainedModel.save_pretrained``, such as ``max_shard_size``.
        """
        if is_main_process:
            save_code(save_directory)
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: StackOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        loss_divisors: LossDivisors | None = None,
    ) -> StMoeOutput | tuple:
        """Compute the logits and, with labels, the objective (Zoph et al. 2022, equation 6).

        Args:
            input_ids: int64 ``[B, L]``.
            attention_mask: 1 for real tokens, ``[B, L]``; None: all tokens but padding.
            decoder_input_ids: int64 ``[B, M]``; None: ``shift_right(labels)``.
            decoder_attention_mask: 1 for real decoder tokens, cached ones included; None: attention is only causal, and
                the routers take the positions with a target as real or, without labels, all tokens but padding.
            encoder_outputs: output of an earlier call of the encoder, in place of ``input_ids``.
            past_key_values: cache of the decoder, updated in place.
            inputs_embeds: ``[B, L, d]``, in place of ``input_ids``.
            decoder_inputs_embeds: ``[B, M, d]``, in place of ``decoder_input_ids``.
            labels: int64 ``[B, M]``, -100 where there is no target.
            use_cache: whether to return a cache; None: ``config.use_cache`` in evaluation mode and without labels.
            output_attentions: refused.
            output_hidden_states: whether to return the hidden states of both stacks; None: as in the config.
            return_dict: False: return a tuple of what is not None; None: as in the config.
            num_items_in_batch: targets of all micro-batches that make one update, on all processes, as ``Trainer``
                counts them. The losses of the micro-batches then add up to that of the update, however its sequences
                are divided: sums over targets are divided by this number, and the router losses of a sequence count
                in proportion to its targets, see ``router_losses_by_sequence``.
            loss_divisors: see ``LossDivisors``. None, without ``num_items_in_batch``: the real tokens of this call.

        Returns:
            ``logits [B, M, V]``, the loss and its terms (with labels), the encoder's output ``[B, L, d]``, the cache.

        Raises:
            ValueError: the arguments contradict each other, something needed is missing or is not supported.
        """
        config = self.config
        refuse_attentions(config.output_attentions if output_attentions is None else output_attentions)
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if num_items_in_batch is not None and loss_divisors is not None:
            raise ValueError("pass num_items_in_batch or loss_divisors, not both")
        encoder_divisor, decoder_divisor = (None, None) if loss_divisors is None else loss_divisors
        weight_B = None
        if labels is not None:
            targets_B = (labels != IGNORED_LABEL).sum(-1)
            if num_items_in_batch is not None:
                # A tensor of one element for each device of nn.DataParallel.
                decoder_divisor = torch.as_tensor(num_items_in_batch, device=labels.device).flatten()[0].clamp(min=1)
                weight_B = targets_B / decoder_divisor
            elif decoder_divisor is None:
                decoder_divisor = targets_B.sum().clamp(min=1)

        if encoder_outputs is None:
            encoder = self.get_encoder()
            attention_mask = encoder.mask(input_ids, attention_mask, inputs_embeds)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("forward() needs decoder_input_ids, decoder_inputs_embeds or labels")
            decoder_input_ids = self.shift_right(labels)
        if encoder_outputs is None:
            if input_ids is not None and decoder_input_ids is not None and decoder_inputs_embeds is None:
                inputs_embeds, decoder_inputs_embeds = self._embed_both(input_ids, decoder_input_ids)
                input_ids = None
            encoder_outputs = encoder(
                input_ids,
                attention_mask,
                inputs_embeds,
                output_hidden_states=output_hidden_states,
                divisor=encoder_divisor,
                weight_B=weight_B,
            )
        memory_BLd = encoder_outputs[0]

        if use_cache is None:
            use_cache = config.use_cache and not self.training and labels is None
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        _check_cache(past_key_values)
        decoder_embeds_BMd = self.shared(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        decoded = self.decoder(
            decoder_embeds_BMd,
            self._real_decoder_tokens(
                decoder_input_ids, decoder_embeds_BMd, decoder_attention_mask, labels, past_key_values
            ),
            decoder_attention_mask,
            memory_BLd,
            attention_mask,
            past_key_values,
            divisor=None if loss_divisors is None else decoder_divisor,
            weight_B=weight_B,
            output_hidden_states=bool(output_hidden_states),
        )
        logits_BMV = self.lm_head(decoded.last_hidden_state)
        terms: dict[str, Tensor] = {}
        if labels is not None:
            assert decoder_divisor is not None
            encoder_losses = getattr(encoder_outputs, "router_losses", None) or ()
            layers = (*encoder_losses, *(decoded.router_losses or ()))
            terms = self._losses(logits_BMV, labels, decoder_divisor, layers)
        output = StMoeOutput(
            loss=terms.pop("loss", None),
            logits=logits_BMV,
            past_key_values=past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            encoder_last_hidden_state=memory_BLd,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            **terms,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _embed_both(self, ids_BL: Tensor, ids_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the tokens of both stacks in one call, whose gradient is one matrix of the embedding's size."""
        embeds = self.shared(torch.cat((ids_BL.flatten(), ids_BM.flatten())))
        of_encoder, of_decoder = embeds.split((ids_BL.numel(), ids_BM.numel()))
        return of_encoder.view(*ids_BL.shape, -1), of_decoder.view(*ids_BM.shape, -1)

    def _real_decoder_tokens(
        self,
        ids_BM: Tensor | None,
        embeds_BMd: Tensor,
        attention_mask: Tensor | None,
        labels_BM: Tensor | None,
        past_key_values: EncoderDecoderCache | None,
    ) -> Tensor:
        """Return a bool mask ``[B, M]`` of the decoder tokens that the routers treat as real."""
        if attention_mask is not None:
            return attention_mask[:, -embeds_BMd.shape[1] :].bool()
        if labels_BM is not None:
            return labels_BM != IGNORED_LABEL
        if ids_BM is None:
            return embeds_BMd.new_ones(embeds_BMd.shape[:2], dtype=torch.bool)
        real = ids_BM != self.config.pad_token_id
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            real[:, 0] = True  # the start token is the pad token
        return real

    def _losses(
        self, logits_BMV: Tensor, labels_BM: Tensor, divisor: Tensor, layers: tuple[RouterLosses, ...]
    ) -> dict[str, Tensor]:
        """Return the loss and its terms, see ``StMoeOutput``."""
        config = self.config
        cross_entropy, output_z = cross_entropy_and_z(logits_BMV, labels_BM, divisor)
        zero = cross_entropy.new_zeros(())
        balance = torch.stack([layer.load_balance for layer in layers]) if layers else zero
        z = torch.stack([layer.z for layer in layers]) if layers else zero
        mean = config.router_loss_reduction == "mean"
        balance, z = (balance.mean(), z.mean()) if mean else (balance.sum(), z.sum())
        real = torch.stack([layer.real_tokens for layer in layers]).sum() if layers else zero
        dropped = torch.stack([layer.dropped_tokens for layer in layers]).sum() if layers else zero
        statistics = [layer.statistics for layer in layers if layer.statistics is not None]
        loss = (
            cross_entropy
            + config.load_balance_coefficient * balance
            + config.router_z_coefficient * z
            + config.output_z_coefficient * output_z
        )
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "load_balance_loss": balance,
            "router_z_loss": z,
            "output_z_loss": output_z,
            "dropped_fraction": dropped / real.clamp(min=1),
            "max_router_logit": torch.stack([layer.max_logit for layer in layers]).amax() if layers else zero,
            **({"router_statistics": torch.stack(statistics)} if statistics else {}),
        }


def _check_cache(cache: Any) -> None:
    """Raise ValueError for a cache that the decoder cannot use."""
    if cache is not None and not isinstance(cache, EncoderDecoderCache):
        raise ValueError(f"past_key_values must be an EncoderDecoderCache, not {type(cache).__name__}")
    if cache is not None and cache.is_compileable:
        raise ValueError("static caches are not supported: leave cache_implementation out")


# Where this module is imported, the Auto classes load a saved model without trust_remote_code.
AutoConfig.register(StMoeConfig.model_type, StMoeConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(StMoeConfig, StMoeForConditionalGeneration, exist_ok=True)
