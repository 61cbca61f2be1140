"""Throughput of the data pipeline on one core, beside its upper bound, SentencePiece encoding alone; it has no peer.

    python benchmarks/data_pipeline.py [--metrics runs/tiny/metrics.jsonl] [--out benchmarks/results/data_pipeline.json]

Two cases: documents of C4's mean length with a vocabulary of T5's size, and the short documents of configs/tiny.yaml
with its small vocabulary. The workloads of a case alternate in slices of a fraction of a second, so that other load on
the machine affects all of them alike. Rates are per CPU second of this process. The text is that of
``python -m data.prepare --source wikipedia --vocab-size 1000``.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.program import print_anything
from common.strict_json import to_json
from data.config import DataConfig
from data.objectives.registry import make_objective
from data.sources.open import open_shards
from data.streaming.group import StreamGroup
from data.streaming.loader import PretrainingLoader
from data.streaming.mixture import MixtureStream
from data.tokenizer import Tokenizer, train_vocabulary

JOINED = 5  # lead sections per document: 2.4 kB, the mean length in C4 English
T5_PIECES = 32_000
SLICES = 40
TOKENS_PER_SLICE = 500_000
BATCH = 8


def read_documents(config: DataConfig) -> list[str]:
    """Read all documents of the training files."""
    shards = open_shards(config, config.train_sources()[0])
    return [row for shard in range(shards.num_shards) for row in shards.rows(shard, 0) if isinstance(row, str)]


def make_workloads(config: DataConfig) -> dict[str, Iterator[int]]:
    """Return endless workloads on the same text with the same tokenizer. Each step yields its number of tokens."""
    tokenizer, texts = Tokenizer(config.vocabulary), read_documents(config)
    packs = [texts[i : i + config.documents_per_pack] for i in range(0, len(texts), config.documents_per_pack)]
    processor = tokenizer._processor
    tokens = [np.concatenate(tokenizer.encode_batch(pack)) for pack in packs]
    objective = make_objective(config, tokenizer)

    def encode(**options: Any) -> Iterator[int]:
        for pack in cycle(packs):
            yield sum(len(ids) for ids in processor.encode(pack, num_threads=1, **options))

    def pipeline() -> Iterator[int]:
        group = StreamGroup(config, tokenizer, [open_shards(config, s) for s in config.train_sources()], [0])
        mixture = group.streams[0]
        assert isinstance(mixture, MixtureStream)
        (stream,) = mixture.streams
        while True:
            before = stream.tokens_given
            batch = group.take([0] * BATCH)
            batch.inputs.astype(np.int64), batch.labels.astype(np.int64)
            yield stream.tokens_given - before

    def corrupt() -> Iterator[int]:
        for number in count():
            pack = tokens[number % len(tokens)]
            objective.examples(pack, np.random.default_rng((2, 0, 0, 0, number)))
            yield len(pack)

    def read() -> Iterator[int]:
        shards = open_shards(config, config.train_sources()[0])
        for shard in cycle(range(shards.num_shards)):
            rows = sum(isinstance(row, str) for row in shards.rows(shard, 0))
            yield rows * sum(map(len, tokens)) // len(texts)

    return {
        "sentencepiece_lists": encode(out_type=int),
        "sentencepiece_arrays": encode(return_type="numpy"),
        "pipeline": pipeline(),
        "span_corruption": corrupt(),
        "reading": read(),
    }


def run_slice(work: Iterator[int]) -> tuple[int, float]:
    """Run one slice of a workload; return (tokens, CPU seconds of this process)."""
    tokens, start = 0, time.process_time()
    while tokens < TOKENS_PER_SLICE:
        tokens += next(work)
    return tokens, time.process_time() - start


def measure_loader(config: DataConfig, workers: int, seconds: float = 4.0) -> float:
    """Return the raw tokens per second of wall time that an otherwise idle process receives from its loader."""
    settings = config.model_copy(update={"num_workers": workers, "num_streams": 8})
    loader = PretrainingLoader(settings, Tokenizer(config.vocabulary), rank=0, world_size=1, batch_size=BATCH)
    try:
        for _ in range(100):
            loader.next_batch()
        before, start = loader.metrics()["data_tokens_train"], time.perf_counter()
        while time.perf_counter() - start < seconds:
            loader.next_batch()
        return (loader.metrics()["data_tokens_train"] - before) / (time.perf_counter() - start)
    finally:
        loader.close()


def run_case(config: DataConfig) -> dict[str, Any]:
    """Measure all workloads of one case; return tokens per second and ratios as JSON values."""
    workloads = make_workloads(config)
    slices: dict[str, list[tuple[int, float]]] = {name: [] for name in workloads}
    for turn in range(SLICES + 1):
        for name, work in workloads.items():
            measured = run_slice(work)
            if turn:  # the first slice is the warm-up
                slices[name].append(measured)
    rates = {name: sum(t for t, _ in measured) / sum(s for _, s in measured) for name, measured in slices.items()}
    slice_rates = {name: [t / s for t, s in measured] for name, measured in slices.items()}
    texts = read_documents(config)
    return {
        "documents": len(texts),
        "bytes_per_document": round(sum(len(text.encode()) for text in texts) / len(texts)),
        "pieces": Tokenizer(config.vocabulary).num_pieces,
        "tokens_per_second_and_core": {name: round(rate) for name, rate in rates.items()},
        "quartiles_of_slices": {
            name: [round(value) for value in statistics.quantiles(values)] for name, values in slice_rates.items()
        },
        "pipeline_of_sentencepiece_lists": round(rates["pipeline"] / rates["sentencepiece_lists"], 3),
        "pipeline_of_sentencepiece_arrays": round(rates["pipeline"] / rates["sentencepiece_arrays"], 3),
        "tokens_per_second_of_workers": {count: round(measure_loader(config, count)) for count in (0, 1, 2)},
    }


def write_c4_like(texts: list[str], folder: Path) -> None:
    """Write longer documents with C4's keys to 8 shards."""
    documents = ["\n".join(texts[i : i + JOINED]) for i in range(0, len(texts), JOINED)]
    for shard in range(8):
        lines = (
            to_json({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": f"https://example.org/{i}"})
            for i, text in enumerate(documents[shard::8])
        )
        (folder / f"part-{shard:05d}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def waiting_share(metrics: Path) -> dict[str, float]:
    """Return the fraction of step time that a run waited for data, over all logged steps."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "data_seconds" in row]
    waited, stepped = (sum(row[key] for row in rows) for key in ("data_seconds", "step_seconds"))
    return {"steps": rows[-1]["step"], "step_seconds": stepped / len(rows), "waiting_share": waited / stepped}


def main() -> None:
    """Measure all cases, print and write the results."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default=DataConfig().train_files, help="Text, in the form of data.train_files.")
    parser.add_argument(
        "--vocabulary", default=DataConfig().vocabulary, help="Small vocabulary, in the form of data.vocabulary."
    )
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a run, to report its time waiting for data.")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/data_pipeline.json"), help="JSON file for the results."
    )
    options = parser.parse_args()
    small = DataConfig(
        train_files=options.files, vocabulary=options.vocabulary, num_streams=1, num_workers=0, inputs_length=512
    )
    results: dict[str, Any] = {
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("sentencepiece", "numpy")},
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        texts = read_documents(small)
        write_c4_like(texts, Path(folder))
        train_vocabulary(texts, T5_PIECES, Path(folder))
        long = small.model_copy(update={"train_files": f"{folder}/*.json.gz", "vocabulary": folder})
        for name, config in (("c4_length_t5_vocabulary", long), ("tiny", small)):
            results["cases"][name] = run_case(config)
            print(name, to_json(results["cases"][name], indent=2), flush=True)
    if options.metrics:
        results["training"] = waiting_share(options.metrics)
        print("training", results["training"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(to_json(results, indent=2) + "\n", encoding="utf-8")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
