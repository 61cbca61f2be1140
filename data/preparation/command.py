"""The command that trains on a prepared dataset, with every number that must match it."""

import shlex
from pathlib import Path
from typing import Any

from data.preparation.domains.registry import DOMAINS
from data.preparation.recipe import LABORATORY_VOCAB_SIZE
from data.span_corruption import raw_and_target_lengths
from data.tokenizer import VOCABULARY_MULTIPLE

# Of configs/tiny.yaml, on which the command builds.
CONFIG, INPUTS_LENGTH, EVAL_EXAMPLES, MICRO_BATCH = "configs/tiny.yaml", 256, 256, 8
MOST_STREAMS = 64  # the default of data.num_streams
# The recipe's choices that leave the vocabulary and the domains as this config names them.
LABORATORY_CONFIG, LABORATORY_FOLDER = "configs/laboratory_cpu.yaml", Path("runs/data/laboratory")
LABORATORY_RECIPE = {
    "source": "laboratory", "vocab_size": LABORATORY_VOCAB_SIZE, "vocabulary": None, "shards": MOST_STREAMS,
}  # fmt: skip


def training_command(out: Path, description: dict[str, Any]) -> str:
    """Return the command line that trains a small model of one process on the dataset.

    Args:
        out: dataset folder.
        description: content of its ``dataset.json``.
    """
    if _is_laboratory(out, description):
        return f"python train.py --config {LABORATORY_CONFIG}"
    needed = description["first_sentinel_id"] + 1
    settings = {
        "training.name": out.name,
        "parallel.expert_parallel_size": 1,
        **_files(out, list(description.get("domains", {}))),
        "data.vocabulary": f"{out}/vocabulary",
        "data.num_streams": min(description["recipe"]["shards"], MOST_STREAMS),
        "model.vocab_size": -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
    }
    examples = validation_examples(description)
    if examples is not None and examples < EVAL_EXAMPLES:
        settings["training.eval_examples"] = max(1, examples // MICRO_BATCH) * MICRO_BATCH
    words = (f"{key}={value}" for key, value in settings.items())
    return f"python train.py --config {CONFIG} {' '.join(map(shlex.quote, words))}"


def _is_laboratory(out: Path, description: dict[str, Any]) -> bool:
    """Return whether the dataset is the one that the laboratory's configs name."""
    recipe, domains = description["recipe"], list(description.get("domains", {}))
    expected = [name for name, domain in DOMAINS.items() if domain.consent is None]
    chosen = {key: recipe.get(key) for key in LABORATORY_RECIPE}
    return out == LABORATORY_FOLDER and chosen == LABORATORY_RECIPE and domains == expected


def _files(out: Path, domains: list[str]) -> dict[str, str]:
    """Return the settings that select the text: of domains, as much of each."""
    if not domains:
        return {
            "data.train_files": f"{out}/train/*.json.gz",
            "data.validation_files": f"{out}/validation/*.json.gz",
        }
    sources = (f"{{name: {name}, weight: 1, files: {out}/train/{name}/}}" for name in domains)
    held_out = (f"{name}: {out}/validation/{name}/" for name in domains)
    return {
        "data.mixture": f"[{', '.join(sources)}]",
        "data.validation_files": f"{{{', '.join(held_out)}}}",
    }


def validation_examples(description: dict[str, Any]) -> int | None:
    """Return how many examples the held-out text gives at least; None for a dataset that does not say.

    Of domains, an evaluation takes as many of each.
    """
    raw_length, _ = raw_and_target_lengths(INPUTS_LENGTH, 0.15, 3.0)
    domains = description.get("domains", {})
    if domains:
        return min(domain["validation"]["tokens"] // raw_length for domain in domains.values()) * len(domains)
    tokens = description.get("validation_tokens")
    return None if tokens is None else tokens // raw_length
