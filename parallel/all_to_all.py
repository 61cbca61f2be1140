"""All-to-all of rows between ranks: differentiable, asynchronous, with equal or unequal splits and measured traffic."""

import time
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers.ranges import ALL_TO_ALL, named_range


class Traffic:
    """Bytes that a layer's all-to-alls sent, and the time that compute was blocked by them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> tuple[int, float]:
        """Return the bytes that this rank sent (to itself too) and the seconds that it waited, since the last call.

        On CUDA this synchronizes with the end of the last all-to-all.
        """
        sent, seconds, events = self.drain()
        for start, end in events:
            end.synchronize()
            seconds += start.elapsed_time(end) / 1000
        return sent, seconds

    def drain(self) -> tuple[int, float, list[tuple[torch.cuda.Event, torch.cuda.Event]]]:
        """Return what ``take`` does without waiting for a device: bytes, seconds of the host, waits of the device."""
        drained = self.bytes, self._seconds, self._events
        self.__init__()  # type: ignore[misc]
        return drained

    def wait(self, work: Any, device: torch.device) -> None:
        """Wait for ``work`` and add the time, on CUDA measured between two events of the current stream."""
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
    """One all-to-all along the first axis; the backward pass exchanges the gradients in the opposite direction.

    Other work may run between ``start`` and ``finish``. Collective: all ranks of ``group`` must start their transfers
    in the same order.

    Args:
        group: the process group.
        traffic: accumulates bytes and seconds.
        send: rows to each rank; None: equal parts of the first axis.
        receive: rows from each rank; None: equal parts of the first axis.
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
        self._gradient: Tensor | None = None  # in flight, from the backward pass of finish to that of start

    def start(self, x: Tensor) -> Tensor:
        """Launch the all-to-all; the result may only be passed to ``finish``."""
        return _Start.apply(x, self)

    def finish(self, received: Tensor) -> Tensor:
        """Wait for the received rows and return them."""
        return _Finish.apply(received, self)

    def _launch(self, x: Tensor, send: list[int] | None, receive: list[int] | None) -> Tensor:
        x = x.contiguous()
        received = x.new_empty((len(x) if receive is None else sum(receive), *x.shape[1:]))
        self.traffic.bytes += x.numel() * x.element_size()
        with named_range(ALL_TO_ALL):
            self._work = dist.all_to_all_single(received, x, receive, send, group=self.group, async_op=True)
        return received

    def _wait(self, received: Tensor) -> None:
        with named_range(ALL_TO_ALL):
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
        grad = ctx.transfer._gradient
        ctx.transfer._gradient = None
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
        transfer._gradient = transfer._launch(grad, transfer.receive, transfer.send)
        return grad, None  # only its shape matters: the backward pass of _Start returns the received gradient
