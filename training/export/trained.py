"""A trained model, of a run or an export, on one or several ranks: for what looks at it, not for what trains it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import DataConfig
from data.tokenizer import Tokenizer
from model.architecture import Architecture, documented_fields
from training.checkpoint.initial.source import Source, look_into
from training.checkpoint.store.best import checkpoint_named, resolved
from training.checkpoint.store.manifest import MANIFEST_FILE
from training.checkpoint.store.state import step_of
from training.config.errors import ConfigError
from training.config.run import RunConfig, validate
from training.export.folders import check_source, check_step
from training.run.kept_inputs import vocabulary_of

if TYPE_CHECKING:
    from model.config import StMoeConfig
    from model.st_moe import StMoeForConditionalGeneration
    from training.checkpoint.initial.readers import Reader
    from training.export.serving import Routing


@dataclass(frozen=True)
class Found:
    """A trained model that was found, and not yet read.

    Attributes:
        name: the folder that the user named.
        source: of the weights.
        config: of the run; None for an export.
        tokenizer: that it was trained with.
    """

    name: Path
    source: Source
    config: RunConfig | None
    tokenizer: Tokenizer

    def check_routing(self, routing: "Routing") -> None:
        """Raise ConfigError if the model cannot be served like this: an export routes as it was exported."""
        if self.config is None and routing == "trained":
            raise ConfigError(
                f"--routing trained: {self.name} is an export, which routes as it was exported: leave --routing out, "
                "and give it to convert.py export"
            )

    def sparse_layers(self) -> list[str]:
        """Return the names of the sparse layers, ``<stack>_<block>``. Raises ConfigError: the model is not readable."""
        if self.config is not None:
            return self.config.architecture().sparse_layer_names()
        file = self.source.folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            known = {field.name for field in documented_fields()}
            return Architecture(**{key: value for key, value in values.items() if key in known}).sparse_layer_names()
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None

    def data(self, given: RunConfig | None) -> tuple[DataConfig, int]:
        """Return how text becomes examples, and the sequences of a batch.

        Args:
            given: a configuration for an export, which has none.

        Raises:
            ConfigError: there is none, or there are two.
        """
        if self.config is not None and given is not None:
            raise ConfigError(f"--config: {self.name} is a run, whose own configuration is used: leave --config out")
        config = self.config or given
        if config is None:
            raise ConfigError(
                f"{self.name} is an export, which does not say how text becomes examples: add --config with the "
                "configuration that it was trained with, such as configs/tiny.yaml"
            )
        return config.data, config.training.micro_batch_size


@dataclass(frozen=True)
class Trained:
    """A trained model, in float32 and in evaluation mode.

    Attributes:
        model: of this rank, whose experts are split over an expert-parallel group.
        config: of the model.
        weights: all of them, in their files.
        step: of the checkpoint; None for an export.
        device: of the model.
    """

    model: "StMoeForConditionalGeneration"
    config: "StMoeConfig"
    weights: "Reader"
    step: int | None
    device: str

    def layer_weights(self, layer: str, part: str) -> dict[str, Any]:
        """Return weights of a sparse layer, all experts included, as float32 tensors by name; reads files.

        Args:
            layer: ``<stack>_<block>``.
            part: ``experts``, whose tensors are ``[E, …]``, or ``router``.
        """
        stack, block = layer.split("_")
        inside = f"{stack}.blocks.{block}.feed_forward.{part}."
        shapes = {name: shape for name, shape in self.weights.shapes.items() if name.startswith(inside)}
        return {
            name.removeprefix(inside): self.weights.weight(name, 0, math.prod(shape)).view(shape).float()
            for name, shape in shapes.items()
        }


def find_trained(folder: Path, step: int | str | None = None, vocabulary: Path | None = None) -> Found:
    """Return what a folder holds: a run (its newest intact checkpoint), one of its checkpoints, or an export.

    ``RUN/checkpoints/best`` and ``…/best:TASK`` are its best checkpoints. Imports neither torch nor DeepSpeed.

    Args:
        folder: of the run, the checkpoint or the export.
        step: of a run, the checkpoint after this step, ``best`` or ``best:TASK`` in place of the newest.
        vocabulary: of a run that has no copy of it, and whose ``data.vocabulary`` is not to be found.

    Raises:
        ConfigError: it is none of them, is damaged, or has no checkpoint of this step.
    """
    name = folder
    folder = resolved(folder)
    if step is not None:
        check_source(folder)
        check_step(folder, str(step))
        folder = checkpoint_named(folder, str(step))
    if not (folder / MANIFEST_FILE).is_file():
        check_source(folder)
    source = look_into(folder, str(folder))
    if source.run_dir is None:
        return Found(name, source, None, Tokenizer(vocabulary or folder, setting="the vocabulary of the export"))
    config = validate(source.sections)
    assert source.fingerprint is not None
    return Found(name, source, config, vocabulary_of(source.run_dir, config, source.fingerprint, vocabulary))


def load_trained(found: Found, routing: "Routing", world_size: int, device: str) -> Trained:
    """Read a model, its experts split over as many ranks as divide them and the world size; collective over all ranks.

    Args:
        found: by ``find_trained``, the same on all ranks.
        routing: of a run: see ``serving.served``; an export routes as it was exported.
        world_size: number of ranks; communication is initialized.
        device: of this rank.

    Raises:
        ConfigError: the weights are damaged or are not those of the model; on all ranks.
    """
    from model.config import StMoeConfig
    from parallel.config import ParallelConfig
    from parallel.layer import sparse_factory
    from training.checkpoint.initial.readers import open_source
    from training.engine.numerics import set_numerics
    from training.export.serving import served
    from training.export.weights import build_from

    found.check_routing(routing)
    set_numerics(deterministic=False)
    if found.config is not None:
        config, _ = served(found.config.model.model_dump(), routing)
    else:
        config = StMoeConfig.from_pretrained(found.source.folder)
    reader = open_source(found.source, config, str(found.name))
    parallel = ParallelConfig(expert_parallel_size=math.gcd(config.num_experts, world_size))
    step = step_of(reader.folder) if found.config is not None else None
    return Trained(build_from(reader, config, sparse_factory(parallel), device), config, reader, step, device)
