"""train.py with an injected fault: ``python -m tests.support.faulty_train FAULT <arguments of train.py>``.

``spike:A:B``: the labels of batches A to B (exclusive, from 0, in the order of the data) are random.
``nan:A:B``: one gradient of the steps A to B (exclusive, from 1) is NaN.
``weight:A:B``: one weight is infinite after the steps A to B.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import train
from data.streaming.loader import Batch, PretrainingLoader
from tests.support.launch import python, rows
from tests.support.small import small_config


def run_faulty(
    folder: Path, corpus: dict[str, Any], name: str, fault: str, *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    """Train 40 steps on one process, with a checkpoint every 5 steps and the guard on; return the rows of metrics."""
    config = small_config(
        folder,
        data=corpus,
        guard={"spike_threshold": 4.0, "spike_window": 8, "spike_steps": 2, "spike_margin": 1},
        training={
            "name": name, "steps": 40, "log_every": 1, "eval_every": 40, "eval_examples": 16, "save_every": 5,
            "micro_batch_size": 8,
        },
    )  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    result = python("-m", "tests.support.faulty_train", fault, "--config", str(file), *arguments)
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-3000:]
    return rows(config.run_dir)


def inject(fault: str) -> None:
    """Patch the loader or the update."""
    kind, first, last = fault.split(":")
    bounds = range(int(first), int(last))
    if kind != "spike":
        _poison(kind, bounds)
        return
    next_batch = PretrainingLoader.next_batch

    def faulty(self: PretrainingLoader) -> Batch:
        # The position in the data, not the step: skipped data is not read again.
        number = self.state_dict()["next_example"] // (self._schedule.world_size * self._schedule.batch_size)
        batch = next_batch(self)
        if self._server is not None and self._config.num_workers and number in bounds:  # not a loader that counts
            rng = np.random.default_rng(number)
            batch["labels"] = np.where(batch["labels"] == -100, -100, rng.integers(200, 256, batch["labels"].shape))
        return batch

    PretrainingLoader.next_batch = faulty  # type: ignore[method-assign]


def _poison(kind: str, steps: range) -> None:
    from training import trainer

    update = trainer.update

    def poisoned(engine: Any, batches: Any, pad_id: int, seed: int, step: int, rank: int, **options: Any) -> Any:
        parameter = engine.module.get_parameter("decoder.blocks.3.feed_forward.experts.w2")
        if step + 1 not in steps:
            return update(engine, batches, pad_id, seed, step, rank, **options)
        hook = parameter.register_hook(lambda gradient: gradient * float("nan")) if kind == "nan" else None
        done = update(engine, batches, pad_id, seed, step, rank, **options)
        if hook is not None:
            hook.remove()
        else:
            from training.checkpoint.master_weights import refresh_weights
            from training.engine.parameters import engine_partitions

            engine_partitions(engine)[0].tensor.detach().view(-1)[7] = float("inf")
            refresh_weights(engine)
        return done

    trainer.update = poisoned  # type: ignore[assignment]


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault:
        inject(fault)
    train.main()
