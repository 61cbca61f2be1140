"""Memory of a worker over minutes: ``MEMORY_MINUTES=3 pytest -m long -s tests/data/streaming/test_memory.py``."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data.config import DataConfig
from data.streaming.loader import PretrainingLoader
from data.streaming.worker import WorkerPool
from data.tokenizer import Tokenizer
from tests.support.faulty_server import serve

MINUTES = float(os.environ.get("MEMORY_MINUTES", "10"))
MIB = 2**20


@pytest.mark.long  # ten minutes of streaming each: growth shows with time alone
@pytest.mark.parametrize("origin", ["files", "http"])
def test_memory_stays_flat(tmp_path: Path, vocabulary: Path, make_texts: Callable[..., list[str]], origin: str) -> None:
    """Short and single-character documents and one of ten megabytes per shard, with shuffling and prefetch.

    After the first tenth of the time, in which caches and allocators fill, the worker grows by less than a tenth.
    """
    words = " ".join(make_texts(400, seed=9))
    for shard in range(4):
        texts = [*make_texts(5000, seed=shard), *"abc" * 300, words * (10_000_000 // len(words))]
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{shard:05d}.json.gz").write_bytes(gzip.compress(content.encode(), 1))
    with serve(tmp_path, fault_rate=0.02) as server:
        where = str(tmp_path / "*.json.gz") if origin == "files" else f"{server.url}/{{00000..00003}}.json.gz"
        config = DataConfig(
            train_files=where, vocabulary=str(vocabulary), num_streams=4, shuffle_buffer=1024, retries=100,
            retry_seconds=0.01, remote_block_bytes=1 << 16,
        )  # fmt: skip
        loader = PretrainingLoader(config, Tokenizer(vocabulary), rank=0, world_size=1, batch_size=32)
        loader.start()
        assert isinstance(loader._server, WorkerPool)
        worker = psutil.Process(loader._server._processes[0].pid)
        start = time.monotonic()
        seen: list[float] = []
        while (elapsed := time.monotonic() - start) < 60 * MINUTES:
            loader.next_batch()
            if elapsed > (len(seen) + 1) * 6 * MINUTES:  # ten times in all
                seen.append(worker.memory_info().rss / MIB)
        metrics = loader.metrics()
        loader.close()
    print(
        f"\n{origin}: {MINUTES:g} min, {metrics['data_tokens_train']:,} tokens, epoch {loader.epoch}, "
        f"{metrics['data_retries']} retries; MiB at start, middle, end: {seen[0]:.0f}, {seen[4]:.0f}, {seen[-1]:.0f}"
    )
    assert max(seen[-3:]) < 1.1 * max(seen[:3]), seen
