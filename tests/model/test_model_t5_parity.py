"""The dense model against transformers' T5 v1.1 with the same weights, and generation against full forward passes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5 import modeling_t5

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.st_moe import StMoeForConditionalGeneration

# heads * d_kv != d_model, and stacks of different depth, so that no mix-up of sizes can go unseen.
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 40,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "dropout_rate": 0.0,
}


def double_norm(self: Any, x: Tensor) -> Tensor:
    """T5's norm without its cast of the variance to float32, which would hide errors above 1e-8 in float64."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture
def t5() -> Any:
    config = T5Config(**SIZES, feed_forward_proj="gated-gelu", decoder_start_token_id=0, attn_implementation="eager")
    reference = T5ForConditionalGeneration(config).eval()
    # transformers 5 ties the head whatever the config says.
    reference.lm_head.weight = nn.Parameter(torch.empty(SIZES["vocab_size"], SIZES["d_model"]))
    reference.config.scale_decoder_outputs = False
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.normal_(generator=generator)
            if "norm" in name:
                weight.mul_(0.2).add_(1)
            elif ".q." in name:
                weight.mul_((SIZES["d_model"] * SIZES["d_kv"]) ** -0.5)
            elif name != "shared.weight" and "bias" not in name:
                weight.mul_(weight.shape[1] ** -0.5)
    return reference


def copy_of(reference: Any, **options: Any) -> StMoeForConditionalGeneration:
    ours = StMoeForConditionalGeneration(StMoeConfig(**SIZES, num_experts=0, **options)).eval()
    state = {"shared.weight": reference.shared.weight, "lm_head.weight": reference.lm_head.weight}
    for side in ("encoder", "decoder"):
        stack = getattr(reference, side)
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        state[f"{side}.position_bias.weight"] = bias.weight
        state[f"{side}.final_norm.scale"] = stack.final_layer_norm.weight
        for index, block in enumerate(stack.block):
            to = f"{side}.blocks.{index}"
            attentions = [("self_attention", block.layer[0], "SelfAttention")]
            if side == "decoder":
                attentions.append(("cross_attention", block.layer[1], "EncDecAttention"))
            for name, layer, theirs in attentions:
                state[f"{to}.{name}_norm.scale"] = layer.layer_norm.weight
                for letter in "qkvo":
                    state[f"{to}.{name}.{letter}.weight"] = getattr(getattr(layer, theirs), letter).weight
            dense = block.layer[-1].DenseReluDense
            state[f"{to}.feed_forward_norm.scale"] = block.layer[-1].layer_norm.weight
            state[f"{to}.feed_forward.w_in.weight"] = dense.wi_0.weight
            state[f"{to}.feed_forward.w_gate.weight"] = dense.wi_1.weight
            state[f"{to}.feed_forward.w_out.weight"] = dense.wo.weight
    ours.load_state_dict({name: weight.detach().clone() for name, weight in state.items()}, strict=True)
    return ours.to(reference.dtype)


def make_batch(batch: int, length: int, targets: int, *, padded: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(2, SIZES["vocab_size"], (batch, length), generator=generator)
    labels = torch.randint(2, SIZES["vocab_size"], (batch, targets), generator=generator)
    mask = torch.ones_like(inputs)
    if padded:
        for row in range(1, batch):
            mask[row, length - 3 * row :] = 0
            labels[row, targets - 2 * row :] = -100
    return {"input_ids": inputs * mask, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("length", "targets"), [(17, 9), (12, 21), (300, 170)])
def test_logits_and_cross_entropy_equal_t5(t5: Any, length: int, targets: int, padded: bool) -> None:
    batch = make_batch(3, length, targets, padded=padded)
    ours = copy_of(t5, output_z_coefficient=0.25)
    with torch.no_grad():
        expected, output = t5(**batch), ours(**batch)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        output.encoder_last_hidden_state, expected.encoder_last_hidden_state, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(output.cross_entropy, expected.loss, rtol=1e-5, atol=1e-5)

    real = batch["labels"] != -100
    z = expected.logits.double().logsumexp(-1)[real].square().mean()
    torch.testing.assert_close(output.output_z_loss.double(), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss.double(), expected.loss.double() + 0.25 * z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_float64_logits_equal_t5(t5: Any, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", double_norm)
    reference, batch = t5.double(), make_batch(3, 150, 140, padded=padded)
    with torch.no_grad():
        expected, logits = reference(**batch).logits, copy_of(reference)(**batch).logits
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_mask_defaults_to_what_is_not_padding(t5: Any) -> None:
    batch = make_batch(3, 17, 9, padded=True)
    with torch.no_grad():
        expected = t5(**batch).logits
        logits = copy_of(t5)(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_decoder_mask_hides_keys_as_in_t5(t5: Any) -> None:
    batch = make_batch(2, 9, 8, padded=False)
    decoder_ids = batch.pop("labels")
    decoder_mask = torch.ones_like(decoder_ids)
    decoder_mask[1, :3] = 0
    with torch.no_grad():
        options = batch | {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
        expected, logits = t5(**options).logits, copy_of(t5)(**options).logits
    real = decoder_mask.bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-4)


def test_gradients_equal_t5(t5: Any) -> None:
    batch, ours = make_batch(3, 20, 11, padded=True), copy_of(t5, output_z_coefficient=0.0)
    t5(**batch).loss.backward()
    ours(**batch).loss.backward()
    encoder: Any = ours.encoder
    decoder: Any = ours.decoder
    their_encoder, their_decoder = t5.encoder.block, t5.decoder.block
    pairs = {
        "embedding": (ours.shared.weight, t5.shared.weight),
        "head": (ours.lm_head.weight, t5.lm_head.weight),
        "encoder bias": (
            encoder.position_bias.weight,
            their_encoder[0].layer[0].SelfAttention.relative_attention_bias.weight,
        ),
        "decoder bias": (
            decoder.position_bias.weight,
            their_decoder[0].layer[0].SelfAttention.relative_attention_bias.weight,
        ),
        "q": (encoder.blocks[1].self_attention.q.weight, their_encoder[1].layer[0].SelfAttention.q.weight),
        "cross k": (decoder.blocks[1].cross_attention.k.weight, their_decoder[1].layer[1].EncDecAttention.k.weight),
        "w_gate": (encoder.blocks[2].feed_forward.w_gate.weight, their_encoder[2].layer[1].DenseReluDense.wi_1.weight),
        "norm": (decoder.blocks[0].feed_forward_norm.scale, their_decoder[0].layer[2].layer_norm.weight),
    }
    for name, (mine, theirs) in pairs.items():
        scale = theirs.grad.abs().max()
        assert scale > 1e-5, name
        assert (mine.grad - theirs.grad).abs().max() < 1e-4 * scale, name


def test_greedy_generation_equals_t5(t5: Any) -> None:
    batch = make_batch(3, 15, 1, padded=True)
    del batch["labels"]
    ours = copy_of(t5)
    free = t5.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert free.shape == (3, 13)
    assert len(free.unique()) > 6, "a reference that repeats one token compares nothing"
    assert torch.equal(ours.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None), free)
    # With a token of the first row as end of sentence, rows end at different steps and are padded.
    eos = int(free[0, 4])
    expected = t5.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=eos)
    assert (expected[:, 1:] == 0).any()
    assert torch.equal(ours.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=eos), expected)


def test_beam_search_equals_t5(t5: Any) -> None:
    batch = make_batch(2, 11, 1, padded=True)
    del batch["labels"]
    options = {"max_new_tokens": 7, "num_beams": 3, "do_sample": False, "length_penalty": 1.0}
    expected = t5.generate(**batch, **options)
    assert torch.equal(copy_of(t5).generate(**batch, **options), expected)


def make_model(num_experts: int) -> StMoeForConditionalGeneration:
    config = StMoeConfig(
        **SIZES, num_experts=num_experts, sparse_step=2, second_policy="all", eval_capacity_factor=100.0
    )
    model = StMoeForConditionalGeneration(config).eval()
    initialize_weights(model, config, seed=3)
    with torch.no_grad():
        # The router's initial spread makes near-uniform gates; larger ones make a wrong expert visible.
        for name, weight in model.named_parameters():
            if "router" in name:
                weight.mul_(20)
    return model


@pytest.mark.parametrize("num_experts", [0, 4])
def test_cached_decoding_equals_full_forward(num_experts: int) -> None:
    model, batch = make_model(num_experts), make_batch(3, 14, 10, padded=True)
    del batch["labels"]
    sequence = torch.cat((torch.zeros(3, 1, dtype=torch.int64), make_batch(3, 1, 9, padded=False)["labels"]), dim=1)
    with torch.no_grad():
        full = model(**batch, decoder_input_ids=sequence, use_cache=False).logits
        # First four tokens at once, then one by one, then the last two together.
        bounds = [0, 4, 5, 6, 7, 8, 10]
        output, pieces = None, []
        for start, end in itertools.pairwise(bounds):
            output = model(
                **batch if output is None else {"attention_mask": batch["attention_mask"]},
                encoder_outputs=None if output is None else (output.encoder_last_hidden_state,),
                decoder_input_ids=sequence[:, start:end],
                past_key_values=None if output is None else output.past_key_values,
                use_cache=True,
            )
            pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-5, atol=1e-5)


def test_routers_serve_the_start_token_without_labels() -> None:
    """The start token is the pad token, and still a real one: as with labels, which say what is real."""
    model, batch = make_model(4), make_batch(3, 14, 10, padded=False)
    with torch.no_grad():
        expected = model(**batch).logits
        batch["decoder_input_ids"] = torch.cat((torch.zeros(3, 1, dtype=torch.int64), batch.pop("labels")[:, :-1]), 1)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_experts", [0, 4])
def test_generation_equals_argmax_of_full_forward(num_experts: int) -> None:
    model, batch = make_model(num_experts), make_batch(3, 14, 1, padded=True)
    del batch["labels"]
    sequence = torch.zeros(3, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(8):
            logits = model(**batch, decoder_input_ids=sequence, use_cache=False).logits
            sequence = torch.cat((sequence, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    generated = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, sequence)
    assert len(generated.unique()) > 4
    beams = model.generate(**batch, max_new_tokens=8, num_beams=3, do_sample=False)
    assert beams.shape[0] == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_row_generates_as_alone(t5: Any, side: str) -> None:
    model = copy_of(t5)
    rows = [make_batch(1, length, 1, padded=False)["input_ids"][0] for length in (13, 7, 4)]
    inputs = torch.zeros(3, 13, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(13 - len(row), 13) if side == "left" else slice(0, len(row))
        inputs[index, place] = row
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    together = model.generate(input_ids=inputs, attention_mask=(inputs != 0).long(), **options)
    for index, row in enumerate(rows):
        assert torch.equal(model.generate(input_ids=row[None], **options)[0], together[index])
