"""Step 3: the exchange of rows over a group of one rank, exact while streams are busy.

Shape suffixes: E = experts, R = rows, d = d_model.
"""

import deepspeed.comm as dist
import torch
from torch import Tensor

from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from parallel.all_to_all import Traffic
from parallel.exchange import EqualExchange, Exchange, RaggedExchange


class Load:
    """Products on a stream of its own and on the current one, so that kernels and transfers overlap and are late."""

    def __init__(self, setting: Setting):
        size = setting.pick(2048, 16)
        self.factors = torch.randn(2, size, size, device=setting.device)
        self.stream = torch.cuda.Stream() if setting.cuda else None

    def __call__(self) -> None:
        """Enqueue the products."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                torch.mm(self.factors[0], self.factors[1])
        torch.mm(self.factors[1], self.factors[0])


def wrong_elements(exchange: Exchange, rows_Rd: Tensor, load: Load, chunks: int) -> Tensor:
    """Return, on the device, how many elements of output and gradient are not exactly as expected."""
    x_Rd = rows_Rd.clone().requires_grad_()
    load()

    def expert(rows: Tensor, _: Tensor | None) -> Tensor:
        load()
        return rows * 2

    y_Rd = exchange.through(x_Rd * 1, [expert] * chunks)
    grad_Rd = torch.randn_like(y_Rd)
    load()
    y_Rd.backward(grad_Rd)
    assert x_Rd.grad is not None
    wrong = (y_Rd.detach() != rows_Rd * 2).sum() + (x_Rd.grad != grad_Rd * 2).sum()
    torch.full_like(rows_Rd, float("nan"))  # freed at once: memory that is read too early or too late shows
    return wrong


def check_transfers(setting: Setting, report: Report) -> None:
    """Exchange fresh random rows again and again, equal and ragged, with one chunk and with two."""
    repeats, (rows, experts, d) = setting.pick((200, (4096, 4, 1024)), (5, (32, 4, 16)))
    group, load = dist.new_group(ranks=[0]), Load(setting)
    report.value(
        "backend", dist.get_backend(group) if hasattr(dist, "get_backend") else torch.distributed.get_backend()
    )
    counts = [rows // experts + (1 if e % 2 else -1) for e in range(experts)]
    for kind in ("equal", "ragged"):
        for chunks in (1, 2):
            with report.part(f"{kind}, {chunks} chunks"):
                wrong = torch.zeros((), dtype=torch.int64, device=setting.device)
                for _ in range(repeats):
                    rows_Rd = torch.randn(rows, d, device=setting.device).bfloat16()
                    exchange: Exchange
                    if kind == "equal":
                        exchange = EqualExchange(experts, group, Traffic(), chunks)
                    else:
                        counts_E = torch.tensor(counts, device=setting.device)
                        exchange = RaggedExchange(counts_E, group, Traffic(), chunks)
                    wrong += wrong_elements(exchange, rows_Rd, load, chunks)
                found = int(wrong)
                report.check(f"{kind}, {chunks} chunk(s), {repeats} repeats: wrong elements", found, "0", found == 0)
