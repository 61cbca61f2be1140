"""The all-to-all of rows between ranks: differentiable, with equal or unequal splits, asynchronous, counted."""

import time
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Traffic:
    """What a layer's all-to-alls have moved, and how long its computation stood still for them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> tuple[int, float]:
        """Bytes that this rank sent (its own share included) and seconds that it waited, since the last call.

        On CUDA this waits for the last all-to-all.
        """
        seconds = self._seconds
        for start, end in self._events:
            end.synchronize()
            seconds += start.elapsed_time(end) / 1000
        taken = self.bytes, seconds
        self.__init__()  # type: ignore[misc]
        return taken

    def wait(self, work: Any, device: torch.device) -> None:
        """Wait for ``work`` and count the time, on CUDA between two events of the current stream."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work.wait()
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            work.wait()
            self._seconds += time.perf_counter() - began


class Transfer:
    """One all-to-all along the first axis, and its adjoint in the backward pass.

    Between ``start`` and ``finish`` other work may run. All ranks of ``group`` must start theirs in the same order.

    Args:
        group: the ranks.
        traffic: where bytes and seconds are counted.
        send, receive: rows to and from each rank; None: equal shares of the first axis.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        traffic: Traffic,
        send: list[int] | None = None,
        receive: list[int] | None = None,
    ):
        self.group, self.traffic, self.send, self.receive = group, traffic, send, receive
        self._work: Any = None
        self._returning: Tensor | None = None  # the gradient in flight

    def start(self, x: Tensor) -> Tensor:
        """Launch; the result may be passed to ``finish`` and to nothing else."""
        return _Start.apply(x, self)

    def finish(self, received: Tensor) -> Tensor:
        """Wait for the rows."""
        return _Finish.apply(received, self)

    def _launch(self, x: Tensor, send: list[int] | None, receive: list[int] | None) -> Tensor:
        x = x.contiguous()
        received = x.new_empty((len(x) if receive is None else sum(receive), *x.shape[1:]))
        self.traffic.bytes += x.numel() * x.element_size()
        self._work = dist.all_to_all_single(received, x, receive, send, group=self.group, async_op=True)
        return received

    def _wait(self, received: Tensor) -> None:
        self.traffic.wait(self._work, received.device)
        self._work = None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, transfer: Transfer) -> Tensor:
        ctx.transfer = transfer
        return transfer._launch(x, transfer.send, transfer.receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        grad = ctx.transfer._returning
        ctx.transfer._returning = None
        ctx.transfer._wait(grad)
        return grad, None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, received: Tensor, transfer: Transfer) -> Tensor:
        ctx.transfer = transfer
        transfer._wait(received)
        ctx.mark_dirty(received)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        transfer = ctx.transfer
        transfer._returning = transfer._launch(grad, transfer.receive, transfer.send)
        return grad, None  # of the shape that autograd wants; what _Start returns is on its way
