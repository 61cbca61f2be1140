"""The layouts that a configuration could have on a number of GPUs, each as the configuration that chooses it."""

from collections.abc import Iterator

from common.text import divisors
from training.config.deepspeed import read_deepspeed_file, zero_stage
from training.config.errors import ConfigError
from training.config.run import RunConfig


def candidates(config: RunConfig, gpus: int) -> Iterator[RunConfig]:
    """Yield the configuration with every ZeRO stage, expert-parallel size, micro-batch and recomputation.

    ZeRO stages are 1, 2, 3, the configuration's own and, on one GPU, 0. Expert-parallel sizes are the divisors of the
    number of experts, micro-batches those of a GPU's sequences of a step. The DeepSpeed file is the configuration's own
    at its stage, and this project's at the others. The all-to-all has the configuration's chunks where a rank's experts
    can be divided so, and one elsewhere.

    Raises:
        ConfigError: the DeepSpeed file is broken, or the global batch cannot be spread over so many GPUs.
    """
    sequences, left = divmod(config.training.global_batch_size, gpus)
    if left:
        raise ConfigError(
            f"training.global_batch_size = {config.training.global_batch_size} is not divisible by {gpus} GPUs: set a "
            f"multiple of {gpus}, or another number of GPUs"
        )
    own = config.training.deepspeed_config
    own_stage = zero_stage(read_deepspeed_file(own))
    experts = config.architecture().num_experts
    for stage in sorted({1, 2, 3, own_stage} | ({0} if gpus == 1 else set())):
        file = own if stage == own_stage else f"ds_configs/zero{stage}.json"
        for size in divisors(experts) if experts else [1]:
            chunks = config.parallel.all_to_all_chunks
            if size == 1 or experts // size % chunks:
                chunks = 1
            parallel = config.parallel.model_copy(update={"expert_parallel_size": size, "all_to_all_chunks": chunks})
            for recompute in (False, True):
                for micro_batch_size in divisors(sequences):
                    chosen = {
                        "deepspeed_config": file,
                        "micro_batch_size": micro_batch_size,
                        "activation_checkpointing": recompute,
                    }
                    training = config.training.model_copy(update=chosen)
                    yield config.model_copy(update={"parallel": parallel, "training": training})


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
