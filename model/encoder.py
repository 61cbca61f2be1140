"""The encoder with the interface that Hugging Face's ``generate()`` expects: token ids in, hidden states out.

Shape suffixes: B = sequences, L = encoder positions, d = d_model.
"""

import torch
from torch import Tensor, nn

from model.transformer import Stack, StackOutput


def refuse_attentions(output_attentions: bool | None) -> None:
    """Raise ValueError if attention weights are asked for: ``scaled_dot_product_attention`` does not give them."""
    if output_attentions:
        raise ValueError(
            "output_attentions = True is not supported: attention is computed by scaled_dot_product_attention, which "
            "returns no weights; leave it out"
        )


class EmbeddedEncoder(nn.Module):
    """Embedding and encoder of a model, which it shares; it is not registered there, so it adds no parameters."""

    def __init__(self, shared: nn.Embedding, encoder: Stack, pad_token_id: int):
        super().__init__()
        self.shared, self.encoder, self.pad_token_id = shared, encoder, pad_token_id

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        divisor: Tensor | None = None,
        weight_B: Tensor | None = None,
    ) -> StackOutput | tuple:
        """Encode ``input_ids [B, L]``, or embeddings ``[B, L, d]`` in their place, into hidden states ``[B, L, d]``.

        Args:
            input_ids: int64.
            attention_mask: 1 for real tokens, ``[B, L]``; None: all tokens but padding, or all embeddings.
            inputs_embeds: embeddings.
            output_attentions: refused.
            output_hidden_states: whether to return ``hidden_states``, see ``StackOutput``.
            return_dict: False: return a tuple of what is not None.
            divisor: see ``Stack.forward``.
            weight_B: see ``Stack.forward``.

        Raises:
            ValueError: not exactly one of ``input_ids`` and ``inputs_embeds``, or ``output_attentions``.
        """
        refuse_attentions(output_attentions)
        attention_mask = self.mask(input_ids, attention_mask, inputs_embeds)
        embeds_BLd = self.shared(input_ids) if inputs_embeds is None else inputs_embeds
        output: StackOutput = self.encoder(
            embeds_BLd,
            attention_mask.bool(),
            attention_mask,
            divisor=divisor,
            weight_B=weight_B,
            output_hidden_states=bool(output_hidden_states),
        )
        return output.to_tuple() if return_dict is False else output

    def mask(self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the mask that ``forward`` uses. Raises ValueError, see there."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, one of them (or encoder_outputs, to the model)")
        if attention_mask is not None:
            return attention_mask
        if input_ids is not None:
            return input_ids != self.pad_token_id
        assert inputs_embeds is not None
        return inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.bool)
