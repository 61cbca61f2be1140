"""What a run says of itself when it begins and when it ends."""

import shlex
from typing import Any

from common.text import counted
from model.config import StMoeConfig
from model.size import count_parameters
from training.config.deepspeed import accumulation_steps
from training.config.run import RunConfig
from training.monitoring.terminal.words import duration, short, size, table
from training.run.folder import RunFolder


def start_table(
    config: RunConfig,
    model: StMoeConfig,
    *,
    step: int,
    ranks: int,
    zero_stage: int,
    tokens_of_sequence: int,
    memory: float,
    peak: object,
    unigram: float,
    trained: int,
) -> str:
    """Describe a run that begins or goes on.

    Args:
        config: the run's.
        model: its model section.
        step: steps already made.
        ranks: of the run.
        zero_stage: of DeepSpeed's options.
        tokens_of_sequence: positions of encoder and decoder together.
        memory: bytes that this rank uses before the first step.
        peak: of a rank, to which ``mfu`` is relative.
        unigram: nats per target of the unigram model.
        trained: parameters that are trained.
    """
    t, folder = config.training, RunFolder(config.run_dir)
    total, active = count_parameters(model)
    accumulation = accumulation_steps(config, ranks)
    tokens = t.global_batch_size * tokens_of_sequence
    parts = f"{counted(accumulation, 'micro-batch', 'es')} of {t.micro_batch_size} x {counted(ranks, 'rank')}"
    return table(
        {
            "run": f"{config.run_dir}, {f'from step {step:,} on, ' if step else ''}{counted(t.steps, 'step')} in all",
            "model": f"{total:,} parameters, {active:,} active per token; {_blocks(model)}",
            "trained": "" if t.trainable == "all" else f"{trained:,} parameters: {t.trainable}",
            "layout": f"{counted(ranks, 'rank')}, expert-parallel size {config.parallel.expert_parallel_size}, "
            f"ZeRO {zero_stage}, {t.precision}",
            "batch": f"{counted(t.global_batch_size, 'sequence')} a step = {parts}; up to {tokens:,} tokens a step, "
            f"{short(tokens * t.steps)} in all",
            "text": _text(config),
            "memory": f"{size(memory)} in use on rank 0 before the first step",
            "mfu": f"relative to {peak} on each rank",
            "baseline": f"unigram cross-entropy {unigram:.4f}",
            "files": f"{folder.path}/  (config.yaml, metrics.jsonl, {folder.tensorboard.name}/, checkpoints/)",
            "watch": f"tensorboard --logdir {shlex.quote(str(folder.path.parent))}",
        }
    )


def end_table(folder: RunFolder, summary: dict[str, Any]) -> str:
    """Describe a finished run and what may follow it.

    Args:
        folder: of the run.
        summary: what ``summary.json`` holds.
    """
    run, steps, tokens = shlex.quote(str(folder.path)), summary["steps"], summary["tokens"]
    cross_entropy = summary["validation_cross_entropy"]
    excess = cross_entropy - summary["unigram_cross_entropy"]
    side = "above" if excess > 0 else "below"
    skipped = ", ".join(f"{n:,} {kind}" for kind, n in summary["bad_rows"].items())
    return table(
        {
            "done": f"{counted(steps, 'step')}, {counted(tokens, 'token')}, in {duration(summary['wall_seconds'])}",
            "reached": f"validation cross-entropy {cross_entropy:.4f} nats per target, {abs(excess):.4f} {side} the "
            "unigram baseline",
            "domains": ", ".join(f"{name} {nats:.4f}" for name, nats in summary["validation_cross_entropy_of"].items()),
            "scores": ", ".join(f"{name} {score:.1f}" for name, score in summary["validation_score_of"].items()),
            "best": ", ".join(
                f"{name} {entry['value']:.4g} (step {entry['step']:,})" for name, entry in summary["best"].items()
            ),
            "skipped": f"data lines: {skipped}" if skipped else "",
            "files": f"{folder.path}/, newest checkpoint {folder.checkpoints / (folder.latest() or '')}",
            "report": f"python -m training.report {run}",
            "continue": folder.continue_command(summary),
            "export": f"python convert.py export {run} --output exported/{shlex.quote(folder.path.resolve().name)}",
        }
    )


def _blocks(model: StMoeConfig) -> str:
    blocks = f"{model.num_layers} + {model.num_decoder_layers} blocks"
    sparse = len(model.sparse_layer_names())
    if not sparse:
        return f"{blocks}, dense"
    return f"{blocks}, {sparse} of them with {counted(model.num_experts, 'expert')}"


def _text(config: RunConfig) -> str:
    """The sources of training text, with their shares if there are several; or the tasks."""
    if config.data.objective == "tasks":
        return f"tasks {', '.join([*config.data.tasks, *(files.name for files in config.data.task_files)])}"
    sources = config.data.train_sources()
    texts = []
    for source in sources:
        keys = source.keys
        if keys.source == "hub":
            place = "/".join(filter(None, (keys.hub_dataset, keys.hub_config)))
        else:
            files = source.files if isinstance(source.files, list) else [source.files]
            place = f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
        texts.append(f"{source.weight:g} x {place}" if len(sources) > 1 else place)
    return "; ".join(texts)
