"""The seconds of a step's phases on this rank, of its device where it has one, without waiting for that in between."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from model.layers.ranges import named_range
from parallel.layer import traffic_of

Event = Any  # torch.cuda.Event, or the seconds of a CPU's clock


class Clock:
    """Times phases; time that compute is blocked by an all-to-all counts as the phase ``all_to_all`` alone.

    Args:
        model: whose all-to-alls are timed.
        device: of the model.
    """

    def __init__(self, model: torch.nn.Module, device: str):
        self.on_device = torch.device(device).type == "cuda"
        self.traffic = traffic_of(model)
        self.restart()

    def restart(self) -> None:
        """Forget all phases so far, and the all-to-alls of an evaluation."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, int, Event, Event]] = []
        self._bytes = 0
        for traffic in self.traffic:
            traffic.drain()

    @contextmanager
    def phase(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time what is run, or launched on the device, within the context, which a profile shows by its name.

        Args:
            name: of the phase; ``data``, …
            host: whether to time the host in any case.
        """
        on_device = self.on_device and not host
        begin = self._now(on_device)
        with named_range(name):
            yield
        end = self._now(on_device)
        self._add(name, 1, begin, end)
        for traffic in self.traffic:
            sent, seconds, events = traffic.drain()
            self._bytes += sent
            self._seconds["all_to_all"] += seconds
            self._seconds[name] -= seconds
            for wait in events:
                self._add("all_to_all", 1, *wait)
                self._add(name, -1, *wait)

    def take(self) -> tuple[dict[str, float], int]:
        """Return the seconds of each phase and the bytes of all-to-alls since the last call; waits for the device."""
        for name, sign, begin, end in self._spans:
            end.synchronize()
            self._seconds[name] += sign * begin.elapsed_time(end) / 1000
        taken = dict(self._seconds), self._bytes
        self.restart()
        return taken

    def _add(self, name: str, sign: int, begin: Event, end: Event) -> None:
        if isinstance(begin, float):
            self._seconds[name] += sign * (end - begin)
        else:
            self._spans.append((name, sign, begin, end))

    def _now(self, on_device: bool) -> Event:
        if not on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
