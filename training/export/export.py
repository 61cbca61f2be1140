"""Exports a checkpoint as a Hugging Face folder, tensor by tensor."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from common.files import write_atomically
from common.paths import check_can_write
from data.objectives.registry import targets_length
from model.st_moe import StMoeForConditionalGeneration
from model.standalone.save import AUTO_MAP, save_code
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.store.publish import begin, publish
from training.config.errors import ConfigError
from training.config.run import validate
from training.export.card import model_card
from training.export.serving import Routing, served
from training.export.weights import write_weights
from training.run.folder import RunFolder
from training.run.kept_inputs import texts_of, vocabulary_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VOCABULARY_KEY = "fingerprint of data.vocabulary"  # of ``SavedState.data["identity"]``


def export(
    run_dir: Path,
    folder: Path,
    dtype: torch.dtype,
    *,
    routing: Routing = "dropless",
    vocabulary: Path | None = None,
    step: str | None = None,
) -> tuple[Path, str]:
    """Write the run's weights with all experts, for ``from_pretrained(folder, trust_remote_code=True)``.

    The folder holds weights, config, generation config, tokenizer, the model's code in one file, and a model card.

    Args:
        run_dir: the run's folder.
        folder: to create; appears when it is complete.
        dtype: of the weights in the file; float32 is what was trained. Routers are float32 in any case.
        routing: see ``serving.served``.
        vocabulary: folder of the run's vocabulary; None: the run's copy, or ``data.vocabulary``.
        step: of the checkpoint, ``best`` or ``best:TASK``; None: the newest.

    Returns:
        The checkpoint's folder, and in words how the exported model routes.

    Raises:
        ConfigError: there is no checkpoint, ``folder`` exists, or the vocabulary is not to be found.
    """
    if folder.exists():
        raise ConfigError(f"--output {folder} exists: remove it, or name another folder")
    check_can_write(folder, "--output")
    checkpoint, state = read_checkpoint(run_dir, step)
    config = validate(state.config)
    tokenizer = vocabulary_of(run_dir, config, state.data["identity"][VOCABULARY_KEY], vocabulary)
    model_config, described = served(config.model.model_dump(), routing)
    model_config.architectures = [StMoeForConditionalGeneration.__name__]
    model_config.dtype = dtype
    model_config.auto_map = dict(AUTO_MAP)
    generation = GenerationConfig(
        pad_token_id=model_config.pad_token_id,
        eos_token_id=model_config.eos_token_id,
        decoder_start_token_id=model_config.decoder_start_token_id,
    )
    # Not max_length: transformers warns of it where users set max_new_tokens.
    generation.max_new_tokens = targets_length(config.data, tokenizer)

    run = RunFolder(run_dir)
    summary = run.summary()
    card = model_card(
        run_dir.resolve().name, config, model_config, state, summary, texts_of(run_dir, config), described
    )
    partial = begin(folder)
    write_weights(checkpoint, partial, dtype)
    model_config.save_pretrained(partial)
    generation.save_pretrained(partial)
    save_code(partial)
    write_atomically(partial / "README.md", card)
    tokenizer.save_hugging_face_tokenizer(partial, config.data.inputs_length)
    publish(folder)
    return checkpoint, described
