"""The cross-entropy of a run's own held-out text. Imports torch when it is computed."""

from pathlib import Path

from data.streaming.loader import Batch
from data.streaming.task_validation import task_validation_batches
from data.streaming.validation import Settings, validation_batches
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.export.trained import Found, Trained
from training.tasks.questions import CROSS_ENTROPY

SETTINGS = Settings("--limit", "--batch-size", " x ranks", "the run")


def held_out_batches(
    found: Found, rank: int, world_size: int, batch_size: int | None, limit: int | None
) -> tuple[list[Batch], list[str]]:
    """Return this rank's held-out batches and their domains, or tasks: those of the run's own evaluations by default.

    Args:
        found: the run.
        rank: this rank.
        world_size: number of ranks.
        batch_size: sequences of a batch on one rank; None: ``training.micro_batch_size``.
        limit: most examples (of each task), at least one batch; None: ``training.eval_examples``.

    Raises:
        ConfigError: it is an export, which does not say how text becomes examples.
        ValueError: the text is not there, or is too little for a batch on every rank.
    """
    config = _config(found)
    size = batch_size or config.training.micro_batch_size
    examples = limit or config.training.eval_examples
    data = config.data
    if data.objective == "tasks":
        return task_validation_batches(
            data, found.tokenizer, rank=rank, world_size=world_size, batch_size=size, limit=examples
        )
    batches = validation_batches(
        data,
        found.tokenizer,
        rank=rank,
        world_size=world_size,
        batch_size=size,
        num_batches=max(1, examples // (size * world_size)),
        settings=SETTINGS,
    )
    return batches, data.validation_domains()


def cross_entropy(
    found: Found, trained: Trained, batches: list[Batch], domains: list[str], rank: int
) -> dict[str, float]:
    """Return the columns of a row of validation: nats per target token, of all text and of each domain; collective."""
    from training.engine.batches import to_device
    from training.engine.step import evaluate

    config = _config(found)
    on_device = [to_device(batch, trained.device) for batch in batches]
    terms = evaluate(trained.model, on_device, int(trained.config.pad_token_id or 0), config.training.seed, rank)
    trained.model.eval()
    values = terms.reduce(trained.config, domains)
    return {name: value for name, value in values.items() if name.partition("/")[0] == "cross_entropy"}


def _config(found: Found) -> RunConfig:
    if found.config is None:
        raise ConfigError(
            f"--tasks {CROSS_ENTROPY}: {found.name} is an export, which does not say how text becomes examples: name "
            "the run"
        )
    return found.config


def folder_of(found: Found) -> Path:
    """Return where results are written by default: in the run, by step, or in the export."""
    if found.source.run_dir is None:
        return found.source.folder / "evaluation"
    return found.source.run_dir / "evaluation" / found.source.folder.name
