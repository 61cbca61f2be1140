"""Evaluates the newest checkpoint of a run once more, with other settings of its routers or without experts.

One process with all experts, on a CPU or one GPU. The held-out examples are the run's. A run of several ranks formed
other micro-batches of them, and so other routing groups: its own figures then differ slightly from those here.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.streaming.identity import VOCABULARY
from training.checkpoint.resume import read_checkpoint
from training.config.errors import ConfigError
from training.config.run import validate

if TYPE_CHECKING:
    from torch import nn

# Keys of the model section that an evaluation may change: read in each forward pass, they shape no weight.
CHANGEABLE = (
    "eval_capacity_factor", "capacity", "min_capacity", "group_size", "top_n", "second_policy", "second_threshold",
    "batch_prioritized",
)  # fmt: skip


class Change(NamedTuple):
    """What an evaluation changes.

    Args:
        settings: keys of the model section (``CHANGEABLE``) with new values, e.g. ``{"eval_capacity_factor": 3.0}``.
        without: sparse layers whose experts give 0, named as in the columns of metrics, such as ``decoder_1``.
    """

    settings: Mapping[str, Any] = {}
    without: Collection[str] = ()


def reevaluate(run_dir: Path, changes: Sequence[Change]) -> list[dict[str, float]]:
    """Return the terms of the objective on the held-out examples, once for each change.

    Starts a process group of one, which must not be there yet, and leaves it.

    Args:
        run_dir: the run's folder.
        changes: one for each evaluation.

    Returns:
        For each, columns of a validation row: ``cross_entropy``, ``dropped_fraction``, ….

    Raises:
        ConfigError: there is no intact checkpoint, a change is not valid, or vocabulary or text are not there.
    """
    fixed = sorted({key for change in changes for key in change.settings} - set(CHANGEABLE))
    if fixed:
        raise ConfigError(f"model.{fixed[0]} cannot be changed after training: choose from {', '.join(CHANGEABLE)}")
    checkpoint = read_checkpoint(run_dir)
    saved = checkpoint.state.config
    config = validate(saved)
    changed = [
        validate({**saved, "model": {**saved["model"], **change.settings}}).st_moe_config() for change in changes
    ]
    layers = config.architecture().sparse_layer_names()
    unknown = sorted({name for change in changes for name in change.without} - set(layers))
    if unknown:
        raise ConfigError(f"{unknown[0]} is no sparse layer of {run_dir}: it has {', '.join(layers) or 'none'}")

    import torch  # after the checks: these imports take seconds

    from data.streaming.validation import validation_batches
    from model.config import StMoeConfig
    from training.engine.batches import to_device
    from training.engine.numerics import set_numerics
    from training.engine.step import evaluate
    from training.export.weights import read_model
    from training.run.distributed import initialize_distributed, shut_down_distributed
    from training.run.kept_inputs import vocabulary_of
    from training.run.process import Process

    tokenizer = vocabulary_of(run_dir, config, checkpoint.state.data["identity"][VOCABULARY])
    t = config.training
    held_out = validation_batches(
        config.data,
        tokenizer,
        rank=0,
        world_size=1,
        batch_size=t.micro_batch_size,
        num_batches=t.eval_examples // t.micro_batch_size,
    )
    device = initialize_distributed(Process(0, 0, 1, 1), t.timeout_seconds)
    try:
        set_numerics(deterministic=t.deterministic)
        model = read_model(checkpoint.folder, config.st_moe_config()).to(device)
        if t.precision == "bf16":
            model.bfloat16()
        batches = [to_device(batch, device) for batch in held_out]
        held = {id(c): c for module in model.modules() if isinstance(c := getattr(module, "config", None), StMoeConfig)}
        found = []
        for changed_config, change in zip(changed, changes, strict=True):
            for own in held.values():
                for key in CHANGEABLE:
                    setattr(own, key, getattr(changed_config, key))
            low = t.precision == "bf16_autocast"
            cast = torch.autocast(device.partition(":")[0], torch.bfloat16) if low else contextlib.nullcontext()
            with cast, _without_experts(model, change.without):
                terms = evaluate(model, batches, int(changed_config.pad_token_id or 0), t.seed, 0)
            found.append(terms.reduce(changed_config, config.data.validation_domains()))
        return found
    finally:
        shut_down_distributed()


@contextlib.contextmanager
def _without_experts(model: "nn.Module", names: Collection[str]) -> Iterator[None]:
    """Let the experts of some sparse layers give 0: their tokens pass through the residual connection alone."""
    with contextlib.ExitStack() as hooks:
        for name in names:
            stack, _, block = name.partition("_")
            layer = model.get_submodule(f"{stack}.blocks.{block}.feed_forward")
            hook = layer.register_forward_hook(lambda _module, _inputs, out: (out[0] * 0, *out[1:]))
            hooks.callback(hook.remove)
        yield
