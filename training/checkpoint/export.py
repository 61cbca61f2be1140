"""Exports a checkpoint as a Hugging Face folder, tensor by tensor."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig

from common.files import write_atomically
from common.strict_json import to_json
from data.tokenizer import Tokenizer
from model.st_moe import StMoeForConditionalGeneration
from training.checkpoint.resume import read_checkpoint
from training.checkpoint.store.index import WEIGHT, TensorReader, chunks
from training.checkpoint.store.publish import begin, publish
from training.checkpoint.store.tensor_file import TensorFileWriter
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate

MAX_FILE_BYTES = 5 * 10**9  # as transformers splits large models; a larger tensor has a file of its own
WEIGHTS_FILE = "model.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(run_dir: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Write the run's newest weights with all experts, config and tokenizer, for ``from_pretrained(folder)``.

    Args:
        run_dir: the run's folder.
        folder: to create; appears when it is complete.
        dtype: of the weights in the file; float32 is what was trained.

    Returns:
        The checkpoint's folder.

    Raises:
        ConfigError: there is no checkpoint, ``folder`` exists, or the vocabulary is not that of the run.
    """
    if folder.exists():
        raise ConfigError(f"--output {folder} exists: remove it, or name another folder")
    checkpoint = read_checkpoint(run_dir)
    config = validate(checkpoint.state.config)
    tokenizer = _tokenizer(config, checkpoint.state.data["identity"]["fingerprint of data.vocabulary"])
    reader = TensorReader(checkpoint.folder)
    model_config = config.st_moe_config()
    model_config.architectures = [StMoeForConditionalGeneration.__name__]
    model_config.dtype = dtype

    partial = begin(folder)
    _write_weights(reader, partial, dtype)
    model_config.save_pretrained(partial)
    GenerationConfig.from_model_config(model_config).save_pretrained(partial)
    tokenizer.save_hugging_face_tokenizer(partial)
    publish(folder)
    return checkpoint.folder


def _tokenizer(config: RunConfig, fingerprint: str) -> Tokenizer:
    tokenizer = Tokenizer(config.data.vocabulary)
    if tokenizer.fingerprint != fingerprint:
        raise ConfigError(
            f"data.vocabulary = {config.data.vocabulary} is no longer the vocabulary of the run (fingerprint "
            f"{tokenizer.fingerprint}, trained with {fingerprint}): restore it"
        )
    return tokenizer


def _write_weights(reader: TensorReader, folder: Path, dtype: torch.dtype) -> None:
    """Write ``model.safetensors`` or, when it would be too large, numbered files and their index."""
    files = list(_files({name: p.numel * dtype.itemsize for name, p in reader.index.parameters.items()}))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = WEIGHTS_FILE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        parameters = {name: reader.index.parameters[name] for name in names}
        with TensorFileWriter(folder / file, {name: (dtype, p.shape) for name, p in parameters.items()}) as writer:
            for name, parameter in parameters.items():
                for start, stop in chunks(0, parameter.numel):
                    writer.append(reader.read(name, WEIGHT, start, stop).to(dtype))
    if len(files) > 1:
        total = sum(p.numel for p in reader.index.parameters.values()) * dtype.itemsize
        text = to_json({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        write_atomically(folder / f"{WEIGHTS_FILE}.index.json", text)


def _files(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield the names of the tensors of each file, in order; ``sizes`` in bytes."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(sizes[n] for n in names) + size > MAX_FILE_BYTES:
            yield names
            names = []
        names.append(name)
    yield names
