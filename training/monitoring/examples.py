"""A few held-out examples as text: what the model predicts, and which experts process which piece.

The predictions are those of the evaluation itself: each target piece from the true ones before it. So they cost no
forward pass and no collective call, whatever the layout, and change nothing. ``fill.py`` generates freely.

Shape suffixes: B = sequences of a micro-batch, L = encoder positions, M = decoder positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from data.tokenizer import Tokenizer
from model.losses import IGNORED_LABEL
from training.monitoring.routers import RouterObserver

Example = dict[str, Any]


class HeldOutExamples:
    """Takes the first examples of an evaluation on rank 0.

    Args:
        count: examples to take; 0 on all other ranks.
        module: the model, inside of the engine.
        tokenizer: of the data.
    """

    def __init__(self, count: int, module: nn.Module, tokenizer: Tokenizer):
        self.count, self.module, self.tokenizer = count, module, tokenizer
        self.routers = RouterObserver(module)
        self.taken: list[Example] = []

    @contextmanager
    def watching(self) -> Iterator[list[Example]]:
        """Fill the list that is given with the examples of the forward passes inside of the context.

        An example has ``example`` (its number), ``input``, ``target`` and ``prediction`` (texts), ``correct`` (share of
        the target's pieces), ``pieces`` (by stack, those that enter it) and ``experts`` (by layer and piece, those that
        process it, first choice first; none where all were full).
        """
        self.taken = []
        hooks = []
        if self.count:
            hooks.append(self.module.register_forward_hook(self._take, with_kwargs=True))
            self.routers.start()
        try:
            yield self.taken
        finally:
            for hook in hooks:
                hook.remove()
            self.routers.stop()

    def _take(self, _module: nn.Module, _args: Any, batch: dict[str, Any], output: Any) -> None:
        """Take what is still wanted of a micro-batch, and stop observing when that is all."""
        wanted = self.count - len(self.taken)
        if wanted <= 0:
            return
        inputs_BL, labels_BM = batch["input_ids"], batch["labels"]
        predicted_BM = output.logits[:wanted].argmax(-1)
        sequences = len(inputs_BL)
        experts = {name: seen.serving_experts(sequences, wanted) for name, seen in self.routers.seen.items()}
        starts_BM = self.module.shift_right(labels_BM)[:wanted]  # type: ignore[operator]
        rows = zip(
            *(tensor.tolist() for tensor in (inputs_BL[:wanted], labels_BM[:wanted], predicted_BM, starts_BM)),
            strict=True,
        )
        for row, (inputs, labels, predicted, starts) in enumerate(rows):
            of = {name: layer[row] for name, layer in experts.items()}
            self.taken.append(self._example(inputs, labels, predicted, starts, of))
        if len(self.taken) >= self.count:
            self.routers.stop()

    def _example(
        self, inputs: list[int], labels: list[int], predicted: list[int], starts: list[int], experts: dict[str, Any]
    ) -> Example:
        tokenizer = self.tokenizer
        read = [position for position, piece in enumerate(inputs) if piece != tokenizer.pad_id]
        written = [position for position, label in enumerate(labels) if label != IGNORED_LABEL]
        target, prediction = [labels[p] for p in written], [predicted[p] for p in written]
        kept = {"encoder": read, "decoder": written}
        return {
            "example": len(self.taken),
            "input": tokenizer.decode(inputs),
            "target": tokenizer.decode(target),
            "prediction": tokenizer.decode(prediction),
            "correct": sum(map(int.__eq__, target, prediction)) / max(len(target), 1),
            "pieces": {
                "encoder": tokenizer.pieces(inputs[p] for p in read),
                "decoder": tokenizer.pieces(starts[p] for p in written),
            },
            "experts": {name: [of[p] for p in kept[name.partition("_")[0]]] for name, of in experts.items()},
        }
