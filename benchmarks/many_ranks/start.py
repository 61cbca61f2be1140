"""The start of a run of many ranks: what they ask of the store on rank 0 until they meet, and while they train.

python -m benchmarks.many_ranks.start
python -m benchmarks.many_ranks.start --ranks 64 --seconds 3

The ranks are threads of this process, which call what ranks call: each opens its own connections. Operations, bytes and
files are those of a real run; seconds are of the processor, of all ranks and the store together.
"""

import argparse
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from common.ports import free_port
from common.program import print_anything
from common.strict_json import to_json
from training.run import rendezvous, watchdog
from training.run.distributed import leave
from training.run.process import Process
from training.run.watchdog import Watchdog

T = TypeVar("T")
RANKS_OF_A_HOST = 8
TIMEOUT_SECONDS = 300.0


class CountingStore:
    """Passes everything on to a store, and counts calls and the bytes of keys, values and answers.

    Args:
        store: a ``torch.distributed.Store``.
        counts: takes ``operations`` and ``bytes``.
    """

    def __init__(self, store: Any, counts: Counter[str]):
        self.store, self.counts = store, counts

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.store, name)

        def call(*arguments: Any) -> Any:
            answer = function(*arguments)
            self.counts["operations"] += 1
            self.counts["bytes"] += _size(arguments) + _size(answer)
            return answer

        return call


def _size(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8 * (value is not None)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=512, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the watchdogs watch (%(default)s)")
    return parser.parse_args()


def start(ranks: int, seconds: float) -> dict[str, Any]:
    """Let ranks meet and their watchdogs watch; return the figures of rank 0's store."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    processes = [Process(rank, rank % RANKS_OF_A_HOST, ranks, RANKS_OF_A_HOST) for rank in range(ranks)]
    counts: Counter[str] = Counter()
    _count(rendezvous, "_open", counts)
    _count(watchdog, "connect", counts)
    files, ends = _open_files(), []
    stores, meeting = _on_threads(processes, lambda process: rendezvous.meet(process, TIMEOUT_SECONDS))
    figures: dict[str, Any] = {"ranks": ranks, "meet_seconds": meeting, "meet": dict(counts)}
    counts.clear()
    dogs, constructing = _on_threads(
        processes, lambda process: Watchdog(process, 1800.0, 120.0, lambda text, code: ends.append((text, code)))
    )
    figures |= {"watchdog_seconds": constructing, "files": _open_files() - files}
    while len(dogs[0].beats.last) < ranks:
        time.sleep(0.1)
    counts.clear()
    began, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    figures["watching"] = {name: count / (time.perf_counter() - began) for name, count in counts.items()}
    figures["processor_share_of_all_ranks"] = (time.process_time() - used) / (time.perf_counter() - began)
    figures["rank_0_reads_seconds"] = statistics.median(_timed(lambda: dogs[0]._read(0.0)) for _ in range(5))
    figures["rank_0_judges_seconds"] = statistics.median(_timed(lambda: dogs[0]._reason(0.0)) for _ in range(5))
    for dog in dogs:
        dog.close()
    assert not ends, ends
    del stores
    return figures


def _count(module: Any, name: str, counts: Counter[str]) -> None:
    function = getattr(module, name)
    setattr(module, name, lambda *arguments: CountingStore(function(*arguments), counts))


def _on_threads(processes: list[Process], function: Callable[[Process], T]) -> tuple[list[T], float]:
    began = time.process_time()
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(function, processes)), time.process_time() - began


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _timed(function: Callable[[], object]) -> float:
    began = time.thread_time()
    function()
    return time.thread_time() - began


def main() -> None:
    """Print the figures and a line of JSON."""
    print_anything()
    options = parse_arguments()
    threading.stack_size(2**18)
    figures = start(options.ranks, options.seconds)
    meet, watching = figures["meet"], figures["watching"]
    print(
        f"{options.ranks} ranks met in {figures['meet_seconds']:.2f} s: {meet['operations']:,} operations of the "
        f"store, {meet['bytes'] / 1e3:,.0f} kB of keys, values and answers"
    )
    print(
        f"watchdogs in {figures['watchdog_seconds']:.2f} s; {figures['files']:,} files are open, both ends of all "
        "connections"
    )
    print(
        f"while they train, each second: {watching['operations']:,.0f} operations, {watching['bytes'] / 1e3:,.0f} kB; "
        f"rank 0 reads all reports in {figures['rank_0_reads_seconds'] * 1e3:.1f} ms and judges them in "
        f"{figures['rank_0_judges_seconds'] * 1e3:.2f} ms"
    )
    print(f"  all ranks together take {figures['processor_share_of_all_ranks']:.2f} cores")
    print(to_json(figures))
    leave(0)  # no rank waits for the threads of the others


if __name__ == "__main__":
    main()
