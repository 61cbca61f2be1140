"""Selects the checkpoint that a run resumes from and checks that it fits; imports torch only for optimizer state."""

from pathlib import Path
from typing import Any

from common.logs import NOTICE, get_logger
from data.streaming.identity import VOCABULARY
from data.tokenizer import Tokenizer
from training.checkpoint.store.best import checkpoint_named
from training.checkpoint.store.layout import ParallelLayout
from training.checkpoint.store.manifest import DamagedError, check_contents, check_sizes, read_manifest
from training.checkpoint.store.state import Checkpoint, candidates, read_folder
from training.config.errors import ConfigError
from training.config.run import SECTIONS, RunConfig
from training.run.folder import RunFolder
from training.run.kept_inputs import kept_vocabulary

logger = get_logger(__name__)

_OTHER_VALIDATION = "figures of validation before and after cannot be compared"
_OTHER_SCORES = "scores before and after cannot be compared"
# What may change on resume, but is worth a word. docs/faults.md lists all.
NOTED = {
    ("training", "precision"): "losses are rounded otherwise",
    ("training", "micro_batch_size"): "routing groups lie within a micro-batch, so other tokens may be dropped",
    ("training", "eval_examples"): _OTHER_VALIDATION,
    ("training", "eval_answers"): _OTHER_SCORES,
    ("training", "eval_answers_by"): _OTHER_SCORES,
    ("data", "validation_files"): _OTHER_VALIDATION,
}


def read_checkpoint(run_dir: Path, name: str | None = None, *, contents: bool = True, sizes: bool = True) -> Checkpoint:
    """Return the newest intact checkpoint of a run; damaged ones are named in a warning and skipped.

    Args:
        run_dir: of the run.
        name: the checkpoint that ``checkpoint_named`` finds, and no other.
        contents: check every byte, and that all numbers are finite. Otherwise the caller must, before it uses any.
        sizes: check that all files are there and have their sizes.

    Raises:
        ConfigError: there is no intact checkpoint, or none of this name.
    """
    folder = RunFolder(run_dir).checkpoints
    found = candidates(run_dir) if name is None else [checkpoint_named(run_dir, name)]
    if not found:
        raise ConfigError(f"{folder} holds no checkpoint")
    reasons = []
    for path in found:
        try:
            records = read_manifest(path)
            if contents:
                from training.checkpoint.finite import check_files_finite  # imports DeepSpeed, which takes seconds

                check_contents(path, records)
                check_files_finite(path, records)
            elif sizes:
                check_sizes(path, records)
            return read_folder(path)
        except DamagedError as error:
            reasons.append(str(error))
            logger.warning("checkpoint refused: %s", error)
    raise ConfigError(f"{folder} holds no intact checkpoint ({'; '.join(reasons)}): restore one from a copy")


def find_checkpoint(config: RunConfig, world_size: int, zero_stage: int, *, sizes: bool = True) -> Checkpoint:
    """Return the run's newest checkpoint, of any layout; its contents are still to be checked.

    Args:
        config: of the run.
        world_size: ranks of the resumed run.
        zero_stage: of the resumed run.
        sizes: see ``read_checkpoint``.

    Raises:
        ConfigError: there is none, or the run cannot resume from it, see ``check_fits``.
    """
    try:
        checkpoint = read_checkpoint(config.run_dir, contents=False, sizes=sizes)
    except ConfigError as error:
        way = (
            "add --restart in its place to begin the run again" if config.run_dir.exists() else "start without --resume"
        )
        fix = "" if RunFolder(config.run_dir).has_checkpoint() else f"; {way}, or set training.name"
        raise ConfigError(f"--resume: {error}{fix}") from None
    if checkpoint.state.step > config.training.steps:
        raise ConfigError(
            f"--resume: training.steps = {config.training.steps} but {config.run_dir} is at step "
            f"{checkpoint.state.step}: set at least {checkpoint.state.step}"
        )
    check_fits(checkpoint, config, world_size, zero_stage)
    return checkpoint


def check_fits(checkpoint: Checkpoint, config: RunConfig, world_size: int, zero_stage: int) -> None:
    """Check that a run can resume from ``checkpoint``.

    Raises:
        ConfigError: model, optimizer, batch, seed or the end of the schedule differ, or the optimizer's state cannot
            change its layout.
    """
    present, saved = config.model_dump(), checkpoint.state.config
    for section, keys in (
        ("model", present["model"].keys() | saved["model"].keys()),
        ("optimizer", present["optimizer"].keys() | saved["optimizer"].keys()),
        ("training", ("global_batch_size", "seed", "trainable")),
    ):
        for key in keys:
            before, now = saved_value(saved, section, key), present[section].get(key)
            if before != now and key != "decay_steps":
                raise ConfigError(
                    f"--resume: {section}.{key} is {now} but {checkpoint.folder} was written with {before}: set "
                    f"{before}, or begin a new run with another training.name (training.init_from = {config.run_dir} "
                    "gives it these weights)"
                )
    _check_schedule(checkpoint, config)
    for (section, key), effect in NOTED.items():
        before, now = saved_value(saved, section, key), present[section].get(key)
        if before != now:
            logger.warning("%s.%s is %s, %s until now: %s", section, key, now, before, effect, extra=NOTICE)
    check_layout_fits(checkpoint, ParallelLayout.of(present, world_size, zero_stage))


def saved_value(saved: dict[str, Any], section: str, key: str) -> Any:
    """Return the value of a key in a saved configuration; its default where an older version did not have the key."""
    field = SECTIONS[section].model_fields.get(key)
    return saved[section].get(key, None if field is None else field.default)


def _check_schedule(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise ConfigError if the schedule ends elsewhere, so that the learning rate jumps, unless that is asked for."""
    optimizer, saved = config.optimizer, checkpoint.state.config
    if optimizer.schedule not in ("linear", "cosine"):
        return
    before = saved["optimizer"]["decay_steps"] or saved["training"]["steps"]
    now = optimizer.decay_steps or config.training.steps
    if before == now:
        return
    from optim.schedule import learning_rate_factor  # imports torch, which takes seconds

    step, ends = checkpoint.state.step, (before, now)
    factors = [learning_rate_factor(step, optimizer.model_copy(update={"decay_steps": end}), end) for end in ends]
    old, new = (optimizer.learning_rate * factor for factor in factors)
    said = (
        f"optimizer.schedule = {optimizer.schedule} ends at step {now}, {before} until now: the learning rate of step "
        f"{step + 1} is {new:.3g} in place of {old:.3g}"
    )
    if optimizer.decay_steps is None:
        raise ConfigError(
            f"--resume: training.steps = {config.training.steps}: {said}: set optimizer.decay_steps={before} to keep "
            f"the schedule, or optimizer.decay_steps={now} to change it"
        )
    logger.warning("%s", said, extra=NOTICE)


def check_same_vocabulary(config: RunConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the checkpoint was trained with another vocabulary than ``tokenizer``."""
    if checkpoint.state.data["identity"][VOCABULARY] == tokenizer.fingerprint:
        return
    saved = kept_vocabulary(config.run_dir) or checkpoint.state.config["data"]["vocabulary"]
    raise ConfigError(
        f"--resume: data.vocabulary = {config.data.vocabulary} is another vocabulary than that of {checkpoint.folder}: "
        f"set data.vocabulary={saved} to resume, or begin a new run with another training.name"
    )


def check_layout_fits(checkpoint: Checkpoint, layout: ParallelLayout) -> None:
    """Raise ConfigError if the optimizer's state cannot be read at ``layout``."""
    from training.checkpoint.optimizer_state.registry import state_format

    state_format(checkpoint.state.optimizer).fits(checkpoint.state.layout, layout)


def describe_resume(checkpoint: Checkpoint, layout: ParallelLayout) -> str:
    """Return one line for users: the checkpoint that the run resumes from and, if they differ, both layouts."""
    written = checkpoint.state.layout
    if written == layout:
        return f"going on from {checkpoint.folder}"
    return f"going on from {checkpoint.folder}, which was written at {written}, at {layout}"
