"""Every row exactly once per epoch: real ranks and workers, a failing server, kills, changing world sizes."""

import gzip
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from common.project import ROOT
from data.config import DataConfig
from data.tokenizer import Tokenizer, train_vocabulary
from tests.support.data_rank import SAVE_EVERY, step_files
from tests.support.faulty_server import serve


def write_rows(folder: Path, shards: int, rows_per_shard: int) -> Path:
    """Write numbered rows with other keys in C4 layout; return a vocabulary that can encode them."""
    (folder / "shards").mkdir(parents=True)
    noise = random.Random(0)
    for shard in range(shards):
        rows = [
            {"text": f"row {shard * rows_per_shard + i} end", "url": f"{noise.getrandbits(256):x}"}
            for i in range(rows_per_shard)
        ]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / "shards" / f"c4-train.{shard:05d}-of-{shards:05d}.json.gz").write_bytes(gzip.compress(content))
    train_vocabulary([f"row {n} end" for n in range(3000)], 60, folder / "vocabulary")
    return folder / "vocabulary"


class Ranks:
    """Processes of one start of a run."""

    def __init__(self, config: DataConfig, world_size: int, folder: Path, step: int) -> None:
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "tests.support.data_rank", config.model_dump_json(), str(rank),
                    str(world_size), str(folder), str(step),
                ],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(world_size)
        ]  # fmt: skip

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def check(self) -> None:
        assert all(process.poll() is None for process in self.processes)


def newest(folder: Path) -> int:
    """Return the last step at which all ranks wrote their state."""
    steps = sorted({int(file.name.split("_")[1]) for file in folder.glob("step_*.json")}, reverse=True)
    return next((step for step in steps if step_files(folder, step)), 0)


def lowest_epoch(folder: Path, step: int) -> int:
    states = [json.loads(file.read_text())["state"] for file in step_files(folder, step)]
    return min(part["epoch"] for state in states for s in state["streams"].values() for part in s["sources"])


def run_with_kills(config: DataConfig, folder: Path, worlds: list[int], steps_between_kills: int) -> int:
    """Start the ranks once per world size and kill them at work.

    Returns:
        The last step, at which each stream has finished at least an epoch.
    """
    pause = random.Random(1)
    step = 0
    for number, world_size in enumerate(worlds):
        ranks = Ranks(config, world_size, folder, step)
        try:
            target, deadline = step + steps_between_kills, time.monotonic() + 300
            last = number == len(worlds) - 1
            while newest(folder) < target or (last and lowest_epoch(folder, newest(folder)) < 1):
                assert time.monotonic() < deadline
                ranks.check()
                time.sleep(0.02)
            time.sleep(pause.uniform(0.0, 0.1))
        finally:
            ranks.kill()
        step = newest(folder)
        for file in folder.glob("step_*.json"):  # steps that only some ranks reached are repeated
            if int(file.name.split("_")[1]) > step:
                file.unlink()
    return step


def rows_by_stream(folder: Path, step: int, tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Return the numbers of the rows of each stream, in order, over all starts."""
    tokens: dict[int, list[int]] = defaultdict(list)
    for at in range(SAVE_EVERY, step + 1, SAVE_EVERY):
        files = step_files(folder, at)
        assert files, at
        for file in files:
            for stream, pieces in json.loads(file.read_text())["read"].items():
                for piece in pieces:
                    tokens[int(stream)] += piece
    return {
        stream: [int(number) for number in re.findall(r"row (\d+) end", tokenizer.decode(ids))]
        for stream, ids in tokens.items()
    }


def account(tmp_path: Path, shards: int, rows_per_shard: int, worlds: list[int], **settings: Any) -> dict[str, int]:
    vocabulary = write_rows(tmp_path, shards, rows_per_shard)
    (tmp_path / "read").mkdir()
    with serve(tmp_path / "shards", fault_rate=0.3, seed=4) as server:
        config = DataConfig(
            train_files=f"{server.url}/c4-train.{{00000..{shards - 1:05d}}}-of-{shards:05d}.json.gz",
            vocabulary=str(vocabulary), inputs_length=64, num_workers=2, retries=100, retry_seconds=0.01,
            remote_block_bytes=4096, **settings,
        )  # fmt: skip
        steps_an_epoch = shards * rows_per_shard * 7 // (70 * 16)
        step = run_with_kills(config, tmp_path / "read", worlds, steps_an_epoch // (len(worlds) + 1))
        faults = server.faults
    rows = rows_by_stream(tmp_path / "read", step, Tokenizer(vocabulary))
    retries = 0
    for file in (tmp_path / "read").glob("step_*.json"):
        retries = max(retries, json.loads(file.read_text())["retries"])
    seen: Counter[int] = Counter()
    for stream, numbers in rows.items():
        own = [shard for shard in range(shards) if shard % config.num_streams == stream]
        epoch = len(own) * rows_per_shard
        seen.update(numbers[:epoch])
        for start in range(epoch, len(numbers), epoch):  # of the next epochs, the last of them in mid-work
            later = numbers[start : start + epoch]
            assert len(later) == len(set(later)) and set(later) <= set(numbers[:epoch])
    total = shards * rows_per_shard
    return {
        "rows": total,
        "rows seen": len(seen),
        "lost": total - len(seen.keys() & set(range(total))),
        "duplicates": seen.total() - len(seen),
        "starts": len(worlds),
        "faults of the server": faults.total(),
        "retries seen by one rank of one start": retries,
    }


def check(found: dict[str, int]) -> None:
    print("\n" + ", ".join(f"{name}: {count:,}" for name, count in found.items()))
    assert found["lost"] == found["duplicates"] == 0
    assert found["rows seen"] == found["rows"]
    assert found["faults of the server"] > 0


@pytest.mark.distributed
def test_every_row_once_an_epoch_through_kills_faults_and_world_sizes(tmp_path: Path) -> None:
    """Packs of ten rows, several shards per stream, shuffled documents."""
    check(
        account(tmp_path, 16, 100, [2, 1, 2], num_streams=4, documents_per_pack=10, shuffle_buffer=40)
    )  # fmt: skip


@pytest.mark.distributed
@pytest.mark.long  # two minutes of reading; the test above is the short form
def test_forty_thousand_rows_and_five_kills(tmp_path: Path) -> None:
    """Two ranks with two workers each, killed and resumed five times, once with a single rank."""
    check(
        account(
            tmp_path, 64, 625, [2, 2, 1, 2, 2, 2], num_streams=16, documents_per_pack=32, shuffle_buffer=128,
        )
    )  # fmt: skip
