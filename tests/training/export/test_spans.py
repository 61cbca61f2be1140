"""Spans of sentences: how they are read, and how generation fills each in turn."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from data.tokenizer import Tokenizer
from training.export.sentences import decode, encode, parse_sentence
from training.export.spans import SpansInTurn


@pytest.fixture(scope="module")
def tokenizer(corpus: dict[str, Any]) -> Tokenizer:
    return Tokenizer(corpus["vocabulary"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris is red", "has no sentinel to fill"),
        ("", "has no sentinel to fill"),
        ("a <extra_id_1> b", "has the sentinels <extra_id_1>: number them from 0"),
        ("a <extra_id_1> b <extra_id_0>", "number them from 0 in the order"),
        ("a <extra_id_0> b <extra_id_0>", "number them from 0"),
        ("a <extra_id_0> b <extra_id_2>", "number them from 0"),
        ("a <extra_id_> b <extra_id_0>", "spelled otherwise than <extra_id_0>"),
        ("a <extra_id_0", "spelled otherwise"),
        (" ".join(f"<extra_id_{i}>" for i in range(101)), "has 101 sentinels, the vocabulary has 100"),
    ],
)
def test_a_sentence_that_cannot_be_filled_is_refused(text: str, words: str):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        parse_sentence(text, "line 3")
    assert str(raised.value).startswith("line 3 has")
    assert "\n" not in str(raised.value)


def test_a_sentence_is_encoded_as_in_training_and_filled(tokenizer: Tokenizer):
    sentence = parse_sentence("kada <extra_id_0> mipo <extra_id_1>", "it")
    ids = encode(sentence, tokenizer)
    kada, mipo = (part.tolist() for part in tokenizer.encode_batch(["kada", "mipo"]))
    first = tokenizer.first_sentinel_id
    assert ids == [*kada, first, *mipo, first - 1, tokenizer.eos_id]
    assert sentence.filled(["x", "y z"]) == "kada x mipo y z"
    assert sentence.filled(["x"]) == "kada x mipo <extra_id_1>"
    assert parse_sentence("<extra_id_0>", "it").filled(["all"]) == "all"


def test_an_output_is_cut_into_its_spans(tokenizer: Tokenizer):
    sentence = parse_sentence("a <extra_id_0> b <extra_id_1>", "it")
    first, eos = tokenizer.first_sentinel_id, tokenizer.eos_id
    kada, mipo = (part.tolist() for part in tokenizer.encode_batch(["kada", "mipo"]))
    assert decode([first, *kada, first - 1, *mipo, eos, *kada], sentence, tokenizer) == ["kada", "mipo"]
    assert decode([first, *kada, first - 1, *mipo, first - 2, *kada], sentence, tokenizer) == ["kada", "mipo"]
    assert decode([first, *kada], sentence, tokenizer) == ["kada"]
    assert decode([], sentence, tokenizer) == []


def test_sentinels_come_in_turn_and_the_output_ends_after_the_last_span(tokenizer: Tokenizer):
    """Whatever the scores are: random ones, of two sentences with two beams each."""
    wanted, beams, size = [1, 3], 2, tokenizer.vocab_size + 20
    in_turn, first, eos = SpansInTurn(wanted, tokenizer), tokenizer.first_sentinel_id, tokenizer.eos_id
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(4, 1, dtype=torch.int64)
    for _ in range(400):
        scores = torch.randn(4, size, generator=generator)
        scores[:, tokenizer.num_pieces :] += 3  # sentinels and rows of padding are likely
        before = scores.clone()
        ids = torch.cat((ids, in_turn(ids, scores).argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(scores, before)
    for row, output in enumerate(ids.tolist()):
        output = output[1 : output.index(eos)]
        sentinels = [token for token in output if tokenizer.num_pieces <= token]
        assert sentinels == [first - i for i in range(wanted[row // beams])]
        assert output[0] == first
        for one, following in zip(output, [*output[1:], eos], strict=True):
            assert not (one in sentinels and (following in sentinels or following == eos)), "an empty span"
        assert not {tokenizer.pad_id, tokenizer.unk_id} & set(output)


def test_the_sentinel_after_the_last_one_counts_as_the_end(tokenizer: Tokenizer):
    first, eos = tokenizer.first_sentinel_id, tokenizer.eos_id

    def end(score: float) -> Tensor:
        scores = torch.zeros(1, tokenizer.vocab_size)
        scores[0, first - 1] = score
        return SpansInTurn([1], tokenizer)(torch.tensor([[0, first, 5]]), scores)[0]

    assert end(0.0)[eos].item() == pytest.approx(torch.tensor(2.0).log().item())
    assert end(9.0).argmax() == eos
    assert end(9.0)[first - 1] == float("-inf")
