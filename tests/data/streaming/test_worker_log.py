"""What a worker process logs is shown with the rank's own lines."""

import re
from collections.abc import Callable

import pytest

from data.config import DataConfig
from data.streaming.loader import PretrainingLoader
from data.tokenizer import Tokenizer
from tests.support.flaky_source import FlakySource


@pytest.mark.parametrize(("rank", "prefix"), [(0, ""), (1, "rank 1: ")])
def test_a_worker_logs_its_warnings(
    make_config: Callable[..., DataConfig], tokenizer: Tokenizer, rank: int, prefix: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", str(rank))
    config = make_config(num_workers=1)
    loader = PretrainingLoader(config, tokenizer, rank=rank, world_size=2, batch_size=1, sources=[FlakySource()])
    try:
        loader.next_batch()
    finally:
        loader.close()
    line = rf"warning: {prefix}data: flaky shard \d cannot be read beyond row 0, attempt 2 in 0\.0 s \(OSError: "
    assert len(re.findall(line, capfd.readouterr().err)) == 1
