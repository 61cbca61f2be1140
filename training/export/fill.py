"""Fills the spans of sentences with a run's newest checkpoint or an exported model."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList

from data.tokenizer import Tokenizer
from model.st_moe import StMoeForConditionalGeneration
from training.checkpoint.resume import read_checkpoint
from training.config.errors import ConfigError
from training.config.run import validate
from training.export.export import VOCABULARY_KEY
from training.export.folders import check_source, check_step
from training.export.sentences import Sentence, decode, encode
from training.export.serving import served
from training.export.spans import SpansInTurn
from training.export.weights import read_model
from training.run.folder import RunFolder
from training.run.kept_inputs import vocabulary_of

BATCH = 16  # sentences


class Filler(NamedTuple):
    """A model with its vocabulary."""

    model: StMoeForConditionalGeneration
    tokenizer: Tokenizer

    @torch.no_grad()
    def fill(self, sentences: list[Sentence], num_beams: int, max_new_tokens: int) -> Iterator[list[str]]:
        """Yield the spans of each sentence, fewer than it asks for if ``max_new_tokens`` did not suffice."""
        pad = self.tokenizer.pad_id
        for start in range(0, len(sentences), BATCH):
            batch = sentences[start : start + BATCH]
            ids = [torch.tensor(encode(sentence, self.tokenizer)) for sentence in batch]
            inputs = pad_sequence(ids, batch_first=True, padding_value=pad).to(self.model.device)
            in_turn = SpansInTurn([sentence.spans for sentence in batch], self.tokenizer)
            output = self.model.generate(
                inputs,
                attention_mask=(inputs != pad).long(),
                logits_processor=LogitsProcessorList([in_turn]),
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=False,
            )
            for sentence, row in zip(batch, output.tolist(), strict=True):
                yield decode(row[1:], sentence, self.tokenizer)


def load(folder: Path, vocabulary: Path | None = None, step: str | None = None) -> Filler:
    """Load a run folder (its newest intact checkpoint) or an exported folder, on the GPU if there is one.

    Args:
        folder: of the run or the export.
        vocabulary: of a run that has no copy of it, and whose ``data.vocabulary`` is not to be found.
        step: of a run, the checkpoint after this step, ``best`` or ``best:TASK`` in place of the newest.

    Raises:
        ConfigError: it is neither, or cannot fill spans.
    """
    check_source(folder)
    check_step(folder, step)
    if RunFolder(folder).checkpoints.is_dir():
        checkpoint, state = read_checkpoint(folder, step)
        config = validate(state.config)
        if config.data.objective != "span_corruption":
            fix = "evaluate.py answers its tasks" if config.data.objective == "tasks" else "name another run"
            raise ConfigError(
                f"{folder} was trained with data.objective = {config.data.objective} and fills no spans: {fix}"
            )
        tokenizer = vocabulary_of(folder, config, state.data["identity"][VOCABULARY_KEY], vocabulary)
        model = read_model(checkpoint, served(config.model.model_dump(), "dropless")[0])
    else:
        model = _exported(folder)
        tokenizer = Tokenizer(vocabulary or folder)
    return Filler(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


def _exported(folder: Path) -> StMoeForConditionalGeneration:
    try:
        return StMoeForConditionalGeneration.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:  # missing or damaged weights
        raise ConfigError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None
