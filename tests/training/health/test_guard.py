"""What the guard decides, and that a run recovers from what it decides about."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_train import run_faulty
from training.config.guard import GuardConfig
from training.health.guard import Guard
from training.run.folder import RunFolder

CONFIG = GuardConfig(spike_threshold=6.0, spike_window=16, spike_steps=2, spike_margin=3, max_rollbacks=1)


def calm(guard: Guard, steps: range, level: float = 3.0) -> None:
    rng = random.Random(steps.start)
    for step in steps:
        assert guard.observe(step, applied=True, loss=level + rng.uniform(-0.1, 0.1)) is None


def test_a_spike_is_noted_then_rolled_back_then_fatal():
    guard = Guard(CONFIG)
    calm(guard, range(1, 21))
    first = guard.observe(21, applied=True, loss=9.0)
    assert first is not None
    assert (first.kind, first.before) == ("spike", None)
    second = guard.observe(22, applied=True, loss=9.0)
    assert second is not None
    assert (second.kind, second.before) == ("roll_back", 19)  # 18 is 3 steps older than 21
    guard.rolled_back()
    calm(guard, range(19, 25))
    assert guard.observe(25, applied=True, loss=9.0).kind == "spike"
    last = guard.observe(26, applied=True, loss=math.inf)
    assert last is not None
    assert last.kind == "stop"
    assert "guard.max_rollbacks = 1" in last.reason


def test_noise_a_falling_loss_and_single_spikes_are_no_reason_to_roll_back():
    guard = Guard(CONFIG)
    calm(guard, range(1, 17))
    assert guard.observe(17, applied=True, loss=9.0) is not None
    calm(guard, range(18, 30))
    assert guard.spikes == 0
    assert guard.observe(30, applied=True, loss=0.1) is None
    constant = Guard(CONFIG)
    for step in range(1, 40):
        assert constant.observe(step, applied=True, loss=3.0) is None
    assert constant.observe(40, applied=True, loss=3.01) is None


def test_nothing_is_a_spike_before_the_window_is_full_or_by_default():
    guard = Guard(CONFIG)
    calm(guard, range(1, 16))
    assert guard.observe(16, applied=True, loss=50.0) is None
    default = Guard(GuardConfig())
    for step in range(1, 200):
        assert default.observe(step, applied=True, loss=10.0 ** (step % 7)) is None


def test_steps_that_are_not_finite_end_the_run_when_they_follow_each_other():
    guard = Guard(GuardConfig(max_non_finite_steps=3))
    kinds = []
    for step, applied in enumerate([False, False, True, False, False, False], start=1):
        decision = guard.observe(step, applied=applied, loss=None)
        kinds.append(decision.kind if decision else None)
    assert kinds == ["skipped", "skipped", None, "skipped", "skipped", "stop"]
    never = Guard(GuardConfig(max_non_finite_steps=0))
    assert all(never.observe(step, applied=False, loss=None).kind == "skipped" for step in range(500))


@pytest.mark.parametrize("cut", [5, 21, 22])
def test_state_goes_through_json_and_decides_alike(cut: int):
    losses = [3.0 + 0.1 * math.sin(7 * step) for step in range(20)] + [9.0, 9.0, 3.0, 9.0, 9.0]

    def decide(guard: Guard, steps: range) -> list[Any]:
        found = []
        for step in steps:
            found.append(guard.observe(step, applied=step != 4, loss=losses[step]))
            if found[-1] is not None and found[-1].kind == "roll_back":
                guard.rolled_back()
        return found

    whole, resumed = Guard(CONFIG), Guard(CONFIG)
    expected = decide(whole, range(cut))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert decide(resumed, range(cut, len(losses))) == decide(whole, range(cut, len(losses)))
    assert expected.count(None) >= cut - 3


def final(rows: list[dict[str, Any]]) -> float:
    return float([row["cross_entropy"] for row in rows if row.get("split") == "validation"][-1])


@pytest.fixture(scope="module")
def untouched(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the run without a fault."""
    return run_faulty(tmp_path_factory.mktemp("guard"), corpus, "untouched", "")


def test_a_run_rolls_back_and_skips_the_bad_data(
    untouched: list[dict[str, Any]], corpus: dict[str, Any], tmp_path: Path
):
    spiked = run_faulty(tmp_path, corpus, "spiked", "spike:22:24")
    guard = [row for row in spiked if row.get("split") == "guard"]
    assert [row["decision"] for row in guard] == ["spike", "roll_back"], guard
    assert "rolling back to step_00000020; the data of steps 21 to 24 are skipped" in guard[1]["reason"]
    steps = [row["step"] for row in spiked if row["split"] == "train"]
    assert steps == [*range(1, 25), *range(21, 41)]
    before = [row["loss"] for row in untouched if row["split"] == "train"]
    assert [row["loss"] for row in spiked if row["split"] == "train"][:22] == before[:22]
    print(f"validation cross-entropy: untouched {final(untouched):.4f}, with a spike {final(spiked):.4f}")
    assert final(spiked) == pytest.approx(final(untouched), abs=0.1)


def test_a_run_continues_after_steps_that_are_not_finite(
    untouched: list[dict[str, Any]], corpus: dict[str, Any], tmp_path: Path
):
    poisoned = run_faulty(tmp_path, corpus, "poisoned", "nan:20:22")
    skipped = [(row["step"], row["decision"]) for row in poisoned if row.get("split") == "guard"]
    assert skipped == [(20, "skipped"), (21, "skipped")]
    print(f"validation cross-entropy: untouched {final(untouched):.4f}, two steps skipped {final(poisoned):.4f}")
    assert final(poisoned) == pytest.approx(final(untouched), abs=0.1)


@pytest.mark.parametrize(
    ("step", "eval_every", "at", "reason"),
    [
        (
            12,
            40,
            13,
            "the gradient of step 13 is not finite, 1 in a row, and no step can be: the weights are not finite",
        ),
        (12, 12, 12, "the validation loss of step 12 is not finite; not finite among weights: "),
        (15, 40, 15, "weights or optimizer state are not finite at step 15: "),
        (40, 40, 40, "the validation loss of step 40 is not finite; not finite among weights: "),
    ],
)
def test_weights_that_are_not_finite_end_the_run_and_what_is_good_stays(
    step: int, eval_every: int, at: int, reason: str, corpus: dict[str, Any], tmp_path: Path
):
    options = [f"training.eval_every={eval_every}", "training.keep_checkpoints=2"]
    found = run_faulty(tmp_path, corpus, "lost", f"weight:{step}:{step + 1}", *options, code=3)
    last = next(row for row in found if row["split"] == "guard")
    assert (last["step"], last["decision"]) == (at, "stop")
    assert last["reason"].startswith(reason)
    run = RunFolder(tmp_path / "runs" / "lost")
    kept = [5 * n for n in (1, 2, 3, 4, 5, 6, 7) if 5 * n < at][-2:]
    assert sorted(path.name for path in run.checkpoints.glob("*tep_*")) == [f"step_{n:08d}" for n in kept]
    assert run.latest() == f"step_{kept[-1]:08d}"
    assert not run.is_done(40)
