"""The weights of a checkpoint, as files for ``from_pretrained`` or as a model."""

from collections.abc import Iterator
from pathlib import Path

import torch

from common.files import write_atomically
from common.strict_json import to_json
from model.config import StMoeConfig
from model.moe.layer import SparseFeedForward
from model.st_moe import StMoeForConditionalGeneration
from model.transformer import SparseFactory
from training.checkpoint.initial.readers import CheckpointWeights, Reader
from training.checkpoint.store.index import WEIGHT, TensorReader, chunks
from training.checkpoint.store.tensor_file import TensorFileWriter
from training.engine.parameters import model_parameter_specs

MAX_FILE_BYTES = 5 * 10**9  # as transformers splits large models; a larger tensor has a file of its own
WEIGHTS_FILE = "model.safetensors"


def write_weights(checkpoint: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write ``model.safetensors`` or, when it would be too large, numbered files and their index.

    Args:
        checkpoint: its folder.
        folder: to write to.
        dtype: of the weights; those of routers are float32 in any case.
    """
    reader = TensorReader(checkpoint)
    parameters = reader.index.parameters
    dtypes = {name: torch.float32 if ".router." in name else dtype for name in parameters}
    sizes = {name: parameter.numel * dtypes[name].itemsize for name, parameter in parameters.items()}
    files = list(_files(sizes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file = WEIGHTS_FILE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with TensorFileWriter(folder / file, {n: (dtypes[n], parameters[n].shape) for n in names}) as writer:
            for name in names:
                for start, stop in chunks(0, parameters[name].numel):
                    writer.append(reader.read(name, WEIGHT, start, stop).to(dtypes[name]))
    if len(files) > 1:
        text = to_json({"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}, indent=2)
        write_atomically(folder / f"{WEIGHTS_FILE}.index.json", text)


def read_model(checkpoint: Path, config: StMoeConfig) -> StMoeForConditionalGeneration:
    """Return the model of a checkpoint, with all experts, in float32 on the CPU and in evaluation mode."""
    return build_from(CheckpointWeights(checkpoint), config)


def build_from(
    reader: Reader, config: StMoeConfig, make_sparse: SparseFactory = SparseFeedForward, device: str = "cpu"
) -> StMoeForConditionalGeneration:
    """Return a model with the weights of a checkpoint or an export, in float32 and in evaluation mode.

    Args:
        reader: of the weights.
        config: of the model.
        make_sparse: builds the sparse layers; where they are split over ranks, each reads the experts that it holds.
        device: of the weights.
    """
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(config, make_sparse)
    model.to_empty(device=device)
    specs = model_parameter_specs(model)
    with torch.no_grad():
        for parameter in model.parameters():
            spec, flat = specs[parameter], parameter.view(-1)
            first = spec.first_element
            for start, stop in chunks(first, first + parameter.numel()):
                flat[start - first : stop - first] = reader.weight(spec.name, start, stop)
    return model.eval()


def _files(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield the names of the tensors of each file, in order; ``sizes`` in bytes."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(sizes[n] for n in names) + size > MAX_FILE_BYTES:
            yield names
            names = []
        names.append(name)
    yield names
