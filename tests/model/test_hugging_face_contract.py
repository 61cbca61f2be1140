"""What Hugging Face promises of a sequence-to-sequence model, as its T5 keeps it: outputs, Trainer, saving."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from model.config import StMoeConfig
from model.losses import LossDivisors
from model.st_moe import StMoeForConditionalGeneration

SMALL: dict[str, Any] = {
    "vocab_size": 256, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 4, "num_experts": 4,
    "capacity": "dropless", "second_policy": "all", "initializer_scale": 1.0,
}  # fmt: skip


def make_model(**changes: Any) -> StMoeForConditionalGeneration:
    torch.manual_seed(0)
    return StMoeForConditionalGeneration(StMoeConfig(**SMALL | changes)).eval()


def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {key: SMALL[key] for key in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers")}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=False)).eval()


def examples(count: int = 8) -> list[dict[str, list[int]]]:
    """Inputs and targets of unequal lengths."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        inputs = torch.randint(2, 256, (16,), generator=generator)
        labels = torch.randint(2, 256, (8,), generator=generator)
        inputs[16 - 3 * (i % 4) :] = 0
        labels[8 - i % 5 :] = -100
        made.append({"input_ids": inputs.tolist(), "labels": labels.tolist()})
    return made


def batch(count: int = 4) -> dict[str, Tensor]:
    made = examples(count)
    return {key: torch.tensor([example[key] for example in made]) for key in ("input_ids", "labels")}


@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}, {"use_cache": True}])
def test_outputs_have_the_fields_and_the_order_of_t5(options: dict[str, Any]):
    inputs = batch()
    ours, theirs = make_model()(**inputs, **options), make_t5()(**inputs, **{"use_cache": False} | options)
    assert list(ours)[: len(theirs)] == list(theirs)
    for key in theirs:
        if isinstance(theirs[key], tuple):
            assert [x.shape for x in ours[key]] == [x.shape for x in theirs[key]]
        elif isinstance(theirs[key], Tensor):
            assert ours[key].shape == theirs[key].shape, key
    as_tuple = make_model()(**inputs, **options, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], ours.loss) and torch.equal(as_tuple[1], ours.logits)
    assert len(as_tuple) == len(ours)
    assert isinstance(make_model(return_dict=False)(**inputs), tuple)


def test_hidden_states_are_those_of_the_stacks():
    model, inputs = make_model(), batch()
    output = model(**inputs, output_hidden_states=True)
    assert torch.equal(output.encoder_hidden_states[0], model.shared(inputs["input_ids"]))
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    assert torch.equal(model.lm_head(output.decoder_hidden_states[-1]), output.logits)
    assert make_model(output_hidden_states=True)(**inputs).decoder_hidden_states is not None
    assert model(**inputs).decoder_hidden_states is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"atention_mask": torch.ones(4, 16)}, TypeError, "atention_mask"),
        ({"output_attentions": True}, ValueError, "output_attentions = True is not supported"),
        ({"past_key_values": DynamicCache()}, ValueError, "must be an EncoderDecoderCache, not DynamicCache"),
        ({"inputs_embeds": torch.zeros(4, 16, 32)}, ValueError, "input_ids or inputs_embeds"),
        ({"num_items_in_batch": 3, "loss_divisors": LossDivisors(*torch.ones(2))}, ValueError, "not both"),
        ({"labels": None}, ValueError, "needs decoder_input_ids"),
    ],
)
def test_what_is_not_supported_is_refused(arguments: dict[str, Any], error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        make_model()(**batch() | arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"atention_mask": torch.ones(4, 16)}, "atention_mask"),
        ({"cache_implementation": "static"}, "static caches are not supported"),
        ({"output_attentions": True}, "output_attentions = True is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_in_generation(arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        make_model().generate(batch()["input_ids"], max_new_tokens=3, **arguments)


def test_embeddings_stand_in_for_ids():
    model, inputs = make_model(), batch()
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    expected = model(**inputs).logits
    ids = model.shift_right(inputs["labels"])
    embedded = {"inputs_embeds": model.shared(inputs.pop("input_ids")), "decoder_inputs_embeds": model.shared(ids)}
    assert torch.equal(model(**inputs, **embedded).logits, expected)
    del inputs["labels"]
    assert model(**inputs, **embedded).logits.shape == expected.shape
    generated = model.generate(inputs_embeds=embedded["inputs_embeds"], max_new_tokens=4, do_sample=False)
    assert len(generated) == 4


def test_micro_batches_of_trainer_give_the_loss_and_gradient_of_one(tmp_path: Path):
    """However the examples are divided, and although their numbers of targets differ."""

    def train(micro: int, accumulation: int) -> list[tuple[float, float]]:
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
            max_steps=3, logging_steps=1, learning_rate=1e-2, lr_scheduler_type="constant", optim="sgd", seed=0,
            max_grad_norm=1e9, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Seq2SeqTrainer(copy.deepcopy(model), arguments, train_dataset=examples(), eval_dataset=examples(6))
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0
        logits, encoded = trainer.predict(examples(6)).predictions
        assert logits.shape == (6, 8, 256) and encoded.shape == (6, 16, 32)
        return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]

    model = make_model(load_balance_coefficient=1.0, router_z_coefficient=0.1)
    whole = train(8, 1)
    assert len(whole) == 3
    for found, expected in zip(train(2, 4), whole, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_num_items_in_batch_weights_every_term_by_targets():
    """With one sequence, all groups and means are over that sequence: both ways to divide agree."""
    model, one = make_model(), batch(1)
    targets = (one["labels"] != -100).sum()
    plain, counted = model(**one), model(**one, num_items_in_batch=targets)
    for key in ("loss", "cross_entropy", "load_balance_loss", "router_z_loss", "output_z_loss"):
        torch.testing.assert_close(counted[key], plain[key])
        torch.testing.assert_close(model(**one, num_items_in_batch=4 * int(targets))[key], plain[key] / 4)


def test_checkpointed_activations_give_the_same_gradients():
    plain, checkpointed = make_model().train(), make_model().train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(**batch()).loss.backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_embeddings_are_resized_and_replaced(tmp_path: Path):
    model = make_model()
    model.resize_token_embeddings(300, mean_resizing=False)
    assert (model.config.vocab_size, len(model.shared.weight), len(model.lm_head.weight)) == (300, 300, 300)
    assert model(**batch()).logits.shape[-1] == 300
    model.save_pretrained(tmp_path)
    loaded = StMoeForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    new = torch.nn.Embedding(300, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new and model.get_encoder().shared is new


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_loads_bit_by_bit(tied: bool, tmp_path: Path):
    model = make_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded, info = StMoeForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (loaded.lm_head.weight is loaded.shared.weight) == tied
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_auto_classes_know_the_model_where_it_is_imported(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is StMoeForConditionalGeneration


def test_the_router_stays_in_float32_when_a_model_is_loaded_in_bf16(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    model = StMoeForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "router" in name else torch.bfloat16), name
    output = model(**batch())
    assert output.logits.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)])
def test_stacks_of_unequal_depth_generate_the_same_with_and_without_a_cache(layers: tuple[int, int]):
    depths = {"num_layers": layers[0], "num_decoder_layers": layers[1], "sparse_step": 1}
    model, inputs = make_model(**depths), batch()["input_ids"]
    for beams in (1, 3):
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "eos_token_id": None}
        cached = model.generate(inputs, **options)
        assert torch.equal(cached, model.generate(inputs, use_cache=False, **options))
    assert (model.config.num_layers, model.config.num_decoder_layers) == layers
