"""The identity of the training examples: a data state can only be loaded under the identity it was saved with."""

from collections.abc import Sequence
from typing import Any

from data.config import DataConfig
from data.sources.base import ShardSource

# Increment when the same settings and text give other examples.
EXAMPLES_VERSION = 2


def describe_identity(config: DataConfig, sources: Sequence[ShardSource], fingerprint: str) -> dict[str, Any]:
    """Return everything that determines order and content of the examples, as JSON values.

    Args:
        config: the ``data`` section.
        sources: shards of each of ``config.train_sources()``.
        fingerprint: of the vocabulary.
    """
    shards = [source.num_shards for source in sources]
    identity: dict[str, Any] = {
        "data.num_streams": config.num_streams,
        "data.documents_per_pack": config.documents_per_pack,
        "data.shuffle_buffer": config.shuffle_buffer,
        "data.max_document_length": config.max_document_length,
        "data.objective": config.objective,
        "data.inputs_length": config.inputs_length,
        "data.noise_density": config.noise_density,
        "data.mean_noise_span_length": config.mean_noise_span_length,
        "data.seed": config.seed,
        "number of shards": shards[0] if len(shards) == 1 else shards,
        "fingerprint of data.vocabulary": fingerprint,
        "version of this program's examples": EXAMPLES_VERSION,
    }
    if config.mixture:
        identity["names and weights of data.mixture"] = [[item.name, float(item.weight)] for item in config.mixture]
    return identity


def check_identity(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Check that a saved state belongs to the current data settings.

    Raises:
        ValueError: it does not; names the first key that differs.
    """
    for key in current | saved:
        if saved.get(key) != current.get(key):
            raise ValueError(
                f"{key} = {current.get(key)!r}, but the checkpoint was made with {saved.get(key)!r}: restore that "
                "value to resume, or start a new run"
            )
