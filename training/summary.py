"""Builds the run summary and the unigram baseline."""

from collections import Counter
from typing import Any

import deepspeed.comm as dist
import torch

from data.unigram import count_targets, unigram_cross_entropy
from model.size import count_parameters
from training.config.run import RunConfig
from training.inputs import Inputs


def unigram_baseline(inputs: Inputs, device: str) -> float:
    """Return nats per validation target of a unigram model of the training targets; collective."""
    validation = count_targets(inputs.validation, inputs.tokenizer.vocab_size)
    counts = [torch.from_numpy(count).to(device) for count in (inputs.target_counts, validation)]
    for count in counts:
        dist.all_reduce(count)
    return unigram_cross_entropy(counts[0].cpu().numpy(), counts[1].cpu().numpy())


def summarize(config: RunConfig, inputs: Inputs, **figures: Any) -> dict[str, Any]:
    """Return ``figures`` with layout, model size and skipped rows of data; collective."""
    total, active = count_parameters(config.st_moe_config())
    bad_rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(bad_rows, inputs.loader.bad_rows)
    return {
        "init_from": config.training.init_from,
        "init_optimizer": config.training.init_optimizer,
        "world_size": dist.get_world_size(),
        "expert_parallel_size": config.parallel.expert_parallel_size,
        "zero_stage": inputs.zero_stage,
        "parameters_total": total,
        "parameters_active_per_token": active,
        "trainable": config.training.trainable,
        **figures,
        "bad_rows": dict(sum((Counter(rows) for rows in bad_rows), Counter())),
    }
