"""Counts the bytes of the tensors that a training step makes and has not freed yet, by what made them.

Every tensor that an operation returns is seen by a dispatch mode, in the forward and in the backward pass; its storage
is counted until it is freed. Not counted are tensors that were there before, and what an operation allocates and frees
inside itself.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATION, GRADIENT, GATHERED, ENGINE = "activation", "gradient", "gathered", "engine"
_ENGINE_FILES = ("/deepspeed/runtime/zero/", "/optim/")
_GATHERING = ("wait", "_all_gather_sequential", "_all_gather_dtype")


class LiveBytes(TorchDispatchMode):
    """Records when storages are made and freed, each as an activation, a parameter's gradient or the engine's own.

    Args:
        model: whose parameters' gradients are no activations.
        known: tensors that are there before; those of ``model`` are known.
    """

    def __init__(self, model: nn.Module, known: Iterable[Tensor] = ()):
        super().__init__()
        self._live: dict[int, int] = {}
        self._events: list[tuple[int, int]] = []  # number of the storage, its bytes when made, minus them when freed
        self._kinds: dict[int, str] = {}
        self._origins: dict[int, str] = {}
        self._marks: list[int] = []
        self._finalizers: list[Any] = []
        self._number = 0
        for tensor in (*model.parameters(), *model.buffers(), *known):
            if _key(tensor) not in self._live:
                self._live[_key(tensor)] = -1
                self._finalizers.append(weakref.finalize(tensor.untyped_storage(), self._live.pop, _key(tensor)))
        self._hooks = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                # The engine's own hooks may take the gradient away before the second.
                self._hooks.append(parameter.register_hook(self._take_gradient))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(lambda p: self._take_gradient(p.grad)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, func)
        return out

    def mark(self) -> None:
        """Remember this moment for ``at_marks``."""
        self._marks.append(len(self._events))

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()
        for finalizer in self._finalizers:
            finalizer.detach()

    def peak(self, *kinds: str) -> int:
        """Return the most bytes of these kinds that were alive at a time."""
        return max(self._history(kinds), default=0)

    def at_marks(self, *kinds: str) -> list[int]:
        """Return the bytes of these kinds that were alive at each mark."""
        history = [0, *self._history(kinds)]
        return [history[mark] for mark in self._marks]

    def at_peak(self, *kinds: str) -> Counter[str]:
        """Return what was alive at the peak of these kinds: bytes by the operation and the lines that made it."""
        history = self._history(kinds)
        return self._alive(history.index(max(history)) + 1, kinds)

    def at_mark(self, number: int, *kinds: str) -> Counter[str]:
        """Return what was alive at a mark, as ``at_peak``."""
        return self._alive(self._marks[number], kinds)

    def _alive(self, end: int, kinds: tuple[str, ...]) -> Counter[str]:
        alive: Counter[str] = Counter()
        for number, size in self._events[:end]:
            if self._kinds[number] in kinds:
                alive[self._origins[number]] += size
        return +alive

    def _history(self, kinds: tuple[str, ...]) -> list[int]:
        total, history = 0, []
        for number, size in self._events:
            total += size if self._kinds[number] in kinds else 0
            history.append(total)
        return history

    def _see(self, tensor: Tensor, func: Any) -> None:
        key = _key(tensor)
        if key in self._live:
            return
        storage = tensor.untyped_storage()
        number, self._number = self._number, self._number + 1
        self._live[key] = number
        self._kinds[number], self._origins[number] = _origin(func)
        self._events.append((number, storage.nbytes()))
        self._finalizers.append(weakref.finalize(storage, self._free, key, storage.nbytes()))

    def _free(self, key: int, size: int) -> None:
        self._events.append((self._live.pop(key), -size))

    def _take_gradient(self, grad: Tensor | None) -> None:
        if grad is not None:
            number = self._live.get(_key(grad), -1)
            if number >= 0 and self._kinds[number] == ACTIVATION:
                self._kinds[number] = GRADIENT


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _origin(func: Any) -> tuple[str, str]:
    """Return the kind of what this operation makes, and a text that says where."""
    frame: FrameType | None = sys._getframe(3)
    kind, lines = ACTIVATION, list[str]()
    while frame is not None and len(lines) < 3:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if name == "_engine_run_backward":
            lines.append("backward")
            break
        if any(part in file for part in _ENGINE_FILES) and not file.endswith("/zero/linear.py"):
            kind = GATHERED if name in _GATHERING else ENGINE
            lines.append(name)
            break
        if "/site-packages/" not in file and "/torch/" not in file and not file.endswith("live_bytes.py"):
            lines.append(f"{file.rpartition('/')[2].removesuffix('.py')}.{name}:{frame.f_lineno}")
        frame = frame.f_back
    return kind, f"{func} " + " < ".join(lines)
