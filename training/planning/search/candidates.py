"""The layouts that a configuration could have on a number of GPUs, each as the configuration that chooses it."""

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from math import gcd
from typing import Any

from common.text import divisors, either, neighbours
from training.config.deepspeed import read_deepspeed_file, zero_stage
from training.config.errors import ConfigError
from training.config.run import RunConfig


def candidates(config: RunConfig, gpus: int, given: Collection[str] = ()) -> Iterator[RunConfig]:
    """Yield the configuration with every ZeRO stage, expert-parallel size, micro-batch and recomputation.

    ZeRO stages are 1, 2, 3, the configuration's own and, on one GPU, 0. Expert-parallel sizes are the common divisors
    of experts and GPUs, micro-batches those of a GPU's sequences of a step. The DeepSpeed file is the configuration's
    own at its stage, and this project's at the others. The all-to-all has the configuration's chunks where a rank's
    experts can be divided so, and one elsewhere. Keys that are ``given`` keep the configuration's value.

    Raises:
        ConfigError: the DeepSpeed file is broken, or the global batch cannot be spread over so many GPUs.
    """
    batch, t = config.training.global_batch_size, config.training
    if batch % gpus:
        near = either(neighbours(gpus, divisors(batch)))
        raise ConfigError(
            f"training.global_batch_size = {batch} is not divisible by --gpus {gpus}: set a multiple of {gpus}, or "
            f"--gpus {near}"
        )
    own_stage = zero_stage(read_deepspeed_file(t.deepspeed_config))
    stages = sorted({1, 2, 3, own_stage} | ({0} if gpus == 1 else set()))
    files = [t.deepspeed_config if stage == own_stage else f"ds_configs/zero{stage}.json" for stage in stages]
    experts, parallel = config.architecture().num_experts, config.parallel

    def tried(key: str, own: Any, values: Sequence[Any]) -> Sequence[Any]:
        return [own] if key in given else values

    for file, size, recompute, micro_batch_size in product(
        tried("training.deepspeed_config", t.deepspeed_config, files),
        tried(
            "parallel.expert_parallel_size",
            parallel.expert_parallel_size,
            divisors(gcd(experts, gpus)) if experts else [1],
        ),
        tried("training.activation_checkpointing", t.activation_checkpointing, [False, True]),
        tried("training.micro_batch_size", t.micro_batch_size, divisors(batch // gpus)),
    ):
        chunks = parallel.all_to_all_chunks
        if "parallel.all_to_all_chunks" not in given and (size == 1 or experts // size % chunks):
            chunks = 1
        chosen = {
            "deepspeed_config": file,
            "micro_batch_size": micro_batch_size,
            "activation_checkpointing": recompute,
        }
        spread = {"expert_parallel_size": size, "all_to_all_chunks": chunks}
        yield config.model_copy(
            update={"parallel": parallel.model_copy(update=spread), "training": t.model_copy(update=chosen)}
        )


def overrides(config: RunConfig) -> list[str]:
    """Return the words of a command line that choose the layout of a configuration."""
    parallel, training = config.parallel, config.training
    words = [
        f"training.deepspeed_config={training.deepspeed_config}",
        f"training.micro_batch_size={training.micro_batch_size}",
        f"training.activation_checkpointing={str(training.activation_checkpointing).lower()}",
    ]
    if config.architecture().num_experts:
        words.append(f"parallel.expert_parallel_size={parallel.expert_parallel_size}")
        words.append(f"parallel.all_to_all_chunks={parallel.all_to_all_chunks}")
    return words
