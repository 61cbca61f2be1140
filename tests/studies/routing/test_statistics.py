"""Statistics of routing against slow ones, token by token, and laws of their tests and errors."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from studies.routing.analysis import analyze, token_factors
from studies.routing.entropies import Estimate, class_entropies, decoder_above_encoder, mean_of_layers, resamples
from studies.routing.experts import adjusted_residuals, count_table, overlap, specific_words
from studies.routing.information import frequent, information_of_layers, mutual_information, positions_in_bins
from studies.routing.stability import agreement, check_comparable
from studies.routing.words import CLASSES, label
from tests.support.traces import drawn_trace, trace_of


def slow_information(experts: Sequence[int], values: Sequence[int]) -> tuple[float, float]:
    """Plug-in and corrected mutual information, from the definition."""
    pairs, tokens = Counter(zip(experts, values, strict=True)), len(experts)
    of_expert, of_value = Counter(experts), Counter(values)
    total = 0.0
    for (expert, value), count in pairs.items():
        total += count / tokens * math.log(count * tokens / (of_expert[expert] * of_value[value]))
    return total, total - (len(pairs) - len(of_expert) - len(of_value) + 1) / (2 * tokens)


def slow_entropy(experts: Sequence[int], of: int) -> float:
    counts, tokens = Counter(experts), len(experts)
    plain = -sum(count / tokens * math.log(count / tokens) for count in counts.values())
    return min(plain + (len(counts) - 1) / (2 * tokens), math.log(of))


def test_all_statistics_of_a_trace_equal_a_recomputation_token_by_token():
    trace, other = drawn_trace(30), drawn_trace(30, seed=0)
    other.layers["encoder_1"].expert_TN[::3] = 1
    trace.layers["decoder_1"].expert_TN[5] = -1  # where experts choose, one may have no expert
    words = label(trace)
    found = analyze(trace, other, permutations=3, seed=0)
    for layer, routed in trace.layers.items():
        stack = layer.partition("_")[0]
        tokens, labels, of_layer = trace.stacks[stack], words.labels[stack], found["layers"][layer]
        rows: list[dict[str, Any]] = []
        for t in range(len(tokens.token_T)):
            if routed.expert_TN[t, 0] >= 0:
                row = {"expert": int(routed.expert_TN[t, 0]), "class": int(labels.class_T[t]), "t": t}
                rows.append(row | {"word": int(labels.word_T[t]), "example": int(tokens.example_T[t])})
        for name, value_T in token_factors(trace, stack, words).items():
            slow = slow_information([row["expert"] for row in rows], [int(value_T[row["t"]]) for row in rows])
            one = found["information"][layer][name]
            assert (one["plug_in"], one["corrected"]) == pytest.approx(slow, abs=1e-12)
        for number, name in enumerate(CLASSES):
            inside = [row for row in rows if row["class"] == number]
            one = of_layer["entropy"][name]
            assert one["tokens"] == len(inside)
            if not inside:
                assert math.isnan(one["experts"]["value"])
                continue
            assert one["experts"]["value"] == pytest.approx(slow_entropy([row["expert"] for row in inside], 4))
            mean = sum(float(routed.entropy_T[row["t"]]) for row in inside) / len(inside)
            assert one["router"]["value"] == pytest.approx(mean)
            shares = [sum(row["expert"] == expert for row in inside) / len(inside) for expert in range(4)]
            assert of_layer["class_shares"][name] == pytest.approx(shares)
            same = [routed.expert_TN[row["t"], 0] == other.layers[layer].expert_TN[row["t"], 0] for row in inside]
            assert found["stability"]["layers"][layer][name]["same"]["value"] == pytest.approx(np.mean(same))
        assert of_layer["load"] == pytest.approx([sum(r["expert"] == e for r in rows) / len(rows) for e in range(4)])
        for domain, shares in of_layer["domain_shares"].items():
            inside = [r for r in rows if trace.domains[trace.domain_X[r["example"]]] == domain]
            assert shares == pytest.approx([sum(r["expert"] == e for r in inside) / len(inside) for e in range(4)])
        mine, theirs = ([row["word"] for row in rows if row["expert"] == expert] for expert in (0, 1))
        common = sum(min(mine.count(w) / len(mine), theirs.count(w) / len(theirs)) for w in set(mine))
        assert of_layer["similarity"]["words"]["matrix"][0][1] == pytest.approx(common, abs=1e-4)
    assert sum(found["domains"].values()) == 30


def test_errors_are_those_of_resampled_examples():
    trace = drawn_trace(10)
    routed, tokens, class_T = trace.layers["encoder_1"], trace.stacks["encoder"], label(trace).labels["encoder"].class_T
    weights_RX = resamples(10, count=5, seed=3)
    assert weights_RX.sum(1).tolist() == [10] * 5
    entropies = class_entropies(
        routed.first_T, routed.entropy_T, class_T, tokens.example_T, experts=4, classes=8, weights_RX=weights_RX
    )
    of_class = 7
    for resample, weights_X in enumerate(weights_RX):
        experts = [
            int(routed.first_T[t])
            for example, times in enumerate(weights_X)
            for _ in range(int(times))
            for t in range(len(class_T))
            if tokens.example_T[t] == example and class_T[t] == of_class
        ]
        assert entropies[of_class].experts.resampled_R[resample] == pytest.approx(slow_entropy(experts, 4))
    values = entropies[of_class].experts.resampled_R
    assert entropies[of_class].experts.error == pytest.approx(np.std(values, ddof=1))


def test_the_stacks_are_compared_resample_by_resample():
    layers = {"encoder_1": [1.0, 2.0, 3.0], "encoder_3": [3.0, 2.0, 1.0], "decoder_1": [4.0, 4.0, 7.0]}
    estimates = {name: Estimate(values[0], np.array(values)) for name, values in layers.items()}
    assert mean_of_layers([estimates["encoder_1"], estimates["encoder_3"]]).error == 0
    from studies.routing.entropies import ClassEntropy

    compared = decoder_above_encoder({name: ClassEntropy(5, one, one) for name, one in estimates.items()})
    assert compared is not None
    assert compared["difference"].value == 4.0 - 2.0
    assert compared["difference"].error == pytest.approx(np.std([2, 2, 5], ddof=1))
    none = ClassEntropy(0, estimates["decoder_1"], estimates["decoder_1"])
    assert decoder_above_encoder({"encoder_1": none, "decoder_1": none}) is None


def test_a_dependence_is_found_and_independence_is_not():
    rng = np.random.default_rng(0)
    example_T = np.repeat(np.arange(40), 30)
    value_T = rng.integers(0, 5, len(example_T))
    experts = {"free": rng.integers(0, 8, len(example_T)), "bound": (value_T + (rng.random(len(example_T)) < 0.5)) % 8}
    found = information_of_layers(experts, {"value": value_T}, example_T, 8, permutations=49, seed=1)
    free, bound = found["free"]["value"], found["bound"]["value"]
    assert free.p_value > 0.05
    assert abs(free.corrected) < 0.01 < free.plug_in
    assert free.chance == pytest.approx(free.plug_in, rel=0.5)
    assert bound.p_value == 1 / 50
    assert bound.corrected > 20 * bound.chance
    assert bound.of_expert > bound.plug_in
    again = information_of_layers(experts, {"value": value_T}, example_T, 8, permutations=49, seed=1)
    assert again == found


def test_tokens_of_an_example_are_not_taken_for_independent_draws():
    """Each example has an expert and a domain of its own, drawn independently; single tokens seem to depend."""
    rng = np.random.default_rng(5)
    example_T = np.repeat(np.arange(20), 50)
    expert_T, domain_T = rng.integers(0, 4, 20)[example_T], rng.integers(0, 2, 20)[example_T]
    both = {"expert": expert_T}
    by_example = information_of_layers(
        both, {"domain": domain_T}, example_T, 4, constant=frozenset({"domain"}), permutations=99
    )
    by_token = information_of_layers(both, {"domain": domain_T}, np.arange(len(example_T)) * 0, 4, permutations=99)
    assert by_example["expert"]["domain"].p_value > 0.05
    assert by_token["expert"]["domain"].p_value == 1 / 100
    # What is the same all over an example says nothing about the tokens in it.
    within = information_of_layers(both, {"domain": domain_T}, example_T, 4, permutations=9)
    assert within["expert"]["domain"].p_value == 1.0


def test_limits_of_information():
    value_T = np.arange(100) % 4
    assert mutual_information(value_T, value_T, 4, 4)[0] == pytest.approx(math.log(4))
    assert mutual_information(value_T, np.zeros(100, np.int64), 4, 1) == (0.0, 0.0)
    assert mutual_information(value_T[:0], value_T[:0], 4, 4)[0] == 0.0
    assert positions_in_bins(np.arange(100), 10).tolist() == (np.arange(100) // 10).tolist()
    assert frequent(np.array([3, 3, 0, 5, 5, 7]), least=2).tolist() == [0, 0, 2, 1, 1, 2]


def test_words_of_an_expert_are_those_beyond_chance():
    # 60 of 100 tokens go to expert 0; all 40 of word 1 do, of 20 expected; word 2 is too rare to count.
    counts_EW = np.array([[20.0, 40.0, 0.0], [36.0, 0.0, 4.0]])
    z = (40 - 24) / math.sqrt(24 * 0.4 * 0.6)
    assert adjusted_residuals(counts_EW)[0, 1] == pytest.approx(z)
    first, second = specific_words(counts_EW, ["often", "here", "rare"])
    assert [(word.text, word.tokens, word.of_word) for word in first] == [("here", 40, 1.0)]
    assert first[0].z == pytest.approx(z)
    assert [word.text for word in second] == ["often"]
    assert overlap(counts_EW)[0, 1] == pytest.approx(min(20 / 60, 36 / 40))
    assert specific_words(np.zeros((2, 3)), ["a", "b", "c"]) == [[], []]
    none = count_table(np.array([-1, 0]), np.array([0, 1]), 2, 2)
    assert none.tolist() == [[0, 1], [0, 0]]


def test_agreement_against_chance():
    weights_RX = resamples(2, count=4)
    first_T, other_T = np.array([0, 0, 1, 1, -1]), np.array([0, 1, 1, 1, 0])
    one = agreement(first_T, other_T, np.array([0, 0, 1, 1, 1]), 2, weights_RX)
    chance = 0.5 * 0.25 + 0.5 * 0.75
    assert (one.tokens, one.same.value, one.chance) == (4, 0.75, chance)
    assert one.kappa == pytest.approx((0.75 - chance) / (1 - chance))


def test_traces_of_other_text_are_refused():
    trace = drawn_trace(4)
    with pytest.raises(ValueError, match="reads the text as other pieces"):
        check_comparable(trace, drawn_trace(4, seed=1))
    with pytest.raises(ValueError, match="has experts 8"):
        check_comparable(trace, drawn_trace(4, experts=8))
    with pytest.raises(ValueError, match="has sparse layers"):
        check_comparable(trace, trace_of([[4]], [[0]], layers=("encoder_1",)))
