"""A TensorBoard that is running while a run is rolled back, and begins again, by both of TensorBoard's readers."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.tensorboard_server import Server, tensorboard
from training.monitoring.writer import MetricsWriter
from training.run.folder import RunFolder

RUN = "live/tensorboard"
LOAD = {"load/encoder_1": [0.5, 0.5], "probabilities/encoder_1": [1, 2]}


def write(writer: MetricsWriter, step: int, loss: float) -> None:
    writer.write({"step": step, "tokens": 100 * step, "loss": loss})
    if step % 2 == 0:
        writer.write({"split": "validation", "step": step, "tokens": 100 * step, "loss": loss})
        writer.write({"split": "routing", "step": step, **LOAD})


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_running_server_forgets_what_is_undone(tmp_path: Path):
    folder = RunFolder(tmp_path / "runs" / "live")
    folder.path.mkdir(parents=True)
    writer = MetricsWriter(folder, enabled=True)
    for step in range(1, 8):
        write(writer, step, 1.0)
    with ExitStack() as stack:
        readers = (["--load_fast=true"], ["--load_fast=false"])
        servers: list[Server] = [stack.enter_context(tensorboard(folder.path.parent, *options)) for options in readers]

        def all_show(tag: str, points: list[tuple[int, float]]) -> bool:
            return all(server.scalars(RUN).get(tag) == points for server in servers)

        wait_until(lambda: all_show("train/loss", [(step, 1.0) for step in range(1, 8)]))
        back = {"decision": "roll_back", "reason": "a spike", "rollbacks": 1, "rolled_back_to": 3}
        writer.write({"split": "guard", "step": 7, **back})
        writer.rolled_back()
        write(writer, 4, 2.0)
        write(writer, 5, 2.0)
        wait_until(lambda: all_show("train/loss", [*((step, 1.0) for step in (1, 2, 3)), (4, 2.0), (5, 2.0)]))
        assert all_show("validation/loss", [(2, 1.0), (4, 2.0)])
        assert all_show("tokens/train/loss", [*((100 * step, 1.0) for step in (1, 2, 3)), (400, 2.0), (500, 2.0)])
        assert all_show("guard/rollbacks", [(7, 1.0)])
        for server in servers:
            assert server.steps("images", RUN) == {"routing/load": [2, 4]}
            assert server.steps("histograms", RUN) == {"routing/probabilities/encoder_1": [2, 4]}
        writer.close()
        writer = MetricsWriter(folder, enabled=True)  # a run that begins again
        write(writer, 1, 3.0)
        write(writer, 2, 3.0)
        writer.close()
        wait_until(lambda: all_show("train/loss", [(1, 3.0), (2, 3.0)]))
        assert all_show("validation/loss", [(2, 3.0)])
