"""The answers of a trained model: texts that it generates, and how likely it holds each choice.

Shape suffixes: B = sequences of a batch, L = encoder positions, M = decoder positions, V = vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data.tokenizer import Tokenizer
from model.losses import IGNORED_LABEL
from model.st_moe import StMoeForConditionalGeneration
from training.engine.randomness import seed_everything
from training.tasks.batches import BATCH_SIZE, Turn, padded, turns
from training.tasks.questions import Asked, Question, decode

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

    Attributes:
        max_length: most tokens of an answer, EOS and sentinels included.
        beams: 1: greedy.
        batch_size: questions of a batch on one rank.
        use_cache: whether keys and values of earlier positions are kept; without, the same text takes longer.
        length_penalty: exponent of the length by which a beam's log probability is divided.
        sentinels: see ``questions.encode``.
    """

    max_length: int
    beams: int = 1
    batch_size: int = BATCH_SIZE
    use_cache: bool = True
    length_penalty: float = 1.0
    sentinels: bool = False


class Answerer:
    """A model that answers; every method is collective over all ranks, which are given the same questions.

    Args:
        model: in evaluation mode; its experts may be split over the ranks.
        tokenizer: of the model.
        decoding: how answers are generated.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(
        self,
        model: StMoeForConditionalGeneration,
        tokenizer: Tokenizer,
        decoding: Decoding,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.rank, self.world_size = rank, world_size

    @torch.no_grad()
    def generate(self, questions: Sequence[Question]) -> dict[int, str]:
        """Return the answers to this rank's share, by number of the question.

        A rank whose answers are complete keeps serving the others' experts until all are.
        """
        options: dict[str, Any] = {
            "max_new_tokens": self.decoding.max_length,
            "num_beams": self.decoding.beams,
            "use_cache": self.decoding.use_cache,
            "do_sample": False,
            "synced_gpus": self.world_size > 1,
            "pad_token_id": self.tokenizer.pad_id,
            "eos_token_id": self.tokenizer.eos_id,
            # Padding, and rows that only pad the embedding, are no text.
            "suppress_tokens": [
                self.tokenizer.pad_id,
                *range(self.tokenizer.vocab_size, int(self.model.config.vocab_size or 0)),
            ],
        }
        if self.decoding.beams > 1:
            options["length_penalty"] = self.decoding.length_penalty
        answers: dict[int, str] = {}
        for number, turn in enumerate(self._turns(questions)):
            seed_everything("generation", number)
            inputs_BL = self._inputs(turn, questions)
            attention_mask = (inputs_BL != self.tokenizer.pad_id).long()
            output = self.model.generate(inputs_BL, attention_mask=attention_mask, **options)
            for question, ids in zip(turn.own, output.tolist(), strict=False):
                answers[question] = decode(ids[1:], self.tokenizer, sentinels=self.decoding.sentinels)
        return answers

    @torch.no_grad()
    def log_probabilities(self, questions: Sequence[Question]) -> dict[int, list[float]]:
        """Return the log probability of each choice, EOS included, for this rank's share, by number of the question."""
        tokenizer, model = self.tokenizer, self.model
        found: dict[int, list[float]] = {}
        for number, turn in enumerate(self._turns(questions)):
            seed_everything("likelihood", number)
            inputs_BL = self._inputs(turn, questions)
            mask_BL = (inputs_BL != tokenizer.pad_id).long()
            memory = model.get_encoder()(inputs_BL, mask_BL)
            found |= {question: [] for question in turn.own}
            for choice in range(max(len(questions[n].choices) for n in turn.everyone)):
                # Questions with fewer choices repeat their last one, which nobody reads.
                of_everyone = [questions[n].choices[min(choice, len(questions[n].choices) - 1)] for n in turn.everyone]
                of_own = [questions[n].choices[min(choice, len(questions[n].choices) - 1)] for n in turn.own]
                rows = padded(of_own, turn.rows, max(map(len, of_everyone)), tokenizer.eos_id, IGNORED_LABEL)
                labels_BM = torch.tensor(rows, device=model.device)
                logits_BMV = model(encoder_outputs=memory, attention_mask=mask_BL, labels=labels_BM).logits
                totals = _log_probabilities(logits_BMV, labels_BM).tolist()
                for question, total in zip(turn.own, totals, strict=False):
                    if choice < len(questions[question].choices):
                        found[question].append(total)
        return found

    def _turns(self, questions: Sequence[Question]) -> list[Turn]:
        lengths = [len(question.inputs) for question in questions]
        return turns(lengths, self.decoding.batch_size, self.rank, self.world_size)

    def _inputs(self, turn: Turn, questions: Sequence[Question]) -> Tensor:
        length = max(len(questions[number].inputs) for number in turn.everyone)
        own = [questions[number].inputs for number in turn.own]
        rows = padded(own, turn.rows, length, self.tokenizer.eos_id, self.tokenizer.pad_id)
        return torch.tensor(rows, device=self.model.device)


def likeliest(asked: Asked, totals: Mapping[int, Sequence[float]]) -> list[str]:
    """Return the choice of the largest log probability for each example, the first of equal ones.

    Args:
        asked: examples of a task with choices.
        totals: by number of the example, the log probability of each of its choices.
    """
    return [
        max(zip(totals[number], asked.task.choices(example.row) or (), strict=True), key=lambda pair: pair[0])[1]
        for number, example in enumerate(asked.examples)
    ]


def gathered(own: Mapping[int, Answer]) -> dict[int, Answer]:
    """Return the answers of all ranks on rank 0, nothing on others; collective."""
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, parts, dst=0)
    return {number: answer for part in parts or [] for number, answer in part.items()}


def _log_probabilities(logits_BMV: Tensor, labels_BM: Tensor) -> Tensor:
    """Return the sums over the labels of their log probabilities, float64 ``[B]``."""
    real_BM = labels_BM != IGNORED_LABEL
    of_label_BM = logits_BMV.float().log_softmax(-1).gather(-1, labels_BM.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (of_label_BM.double() * real_BM).sum(-1)
