"""Metadata of a checkpoint of many ranks: time, bytes and memory at a save, a resume and a load. Needs no ranks.

python -m benchmarks.many_ranks.checkpoint
python -m benchmarks.many_ranks.checkpoint --config configs/st_moe_l.yaml --ranks 128 --expert-parallel-size 8

It makes what 512 ranks hold of ST-MoE-32B, 269 billion parameters, on the meta device; files of tensors are empty files
of the right size. Every figure is of the functions that a run calls. Seconds are of a processor: other load does not
count, and those of the disk come on top.
"""

import argparse
import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.many_ranks.memory import Peak
from common.program import print_anything
from common.project import ROOT
from common.strict_json import to_json
from training.checkpoint.store.layout import ParallelLayout
from training.config.run import RunConfig, load_config

HASHED = 2**28


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default=str(ROOT / "configs" / "st_moe_32b.yaml"), help="of the model (%(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=512, help="that save (%(default)s)")
    parser.add_argument("--expert-parallel-size", type=int, default=64, help="of the ranks that save (%(default)s)")
    parser.add_argument("--optimizers", default="adafactor,adamw", help="(%(default)s)")
    parser.add_argument("--stages", default="1,3", help="of ZeRO (%(default)s)")
    parser.add_argument("--load-ranks", type=int, default=64, help="of the other layout that loads (%(default)s)")
    return parser.parse_args()


def measure(config: RunConfig, layout: ParallelLayout, load_ranks: int, folder: Path) -> dict[str, Any]:
    """Save and load at a layout; return the figures.

    Args:
        config: with the optimizer.
        layout: that saves.
        load_ranks: of other layouts that load, of the same ZeRO stage.
        folder: empty.
    """
    from benchmarks.many_ranks.cluster import Cluster
    from benchmarks.many_ranks.former import former
    from benchmarks.many_ranks.saved import gather, write

    cluster = Cluster.of(config.st_moe_config(), layout)
    gathered = gather(cluster, config)
    packed = gathered.captured.packed
    with Peak() as pack:
        gathered.captured.meta.pack()
    with Peak() as save:
        write(gathered, folder)
    figures: dict[str, Any] = {
        "parameters": cluster.numel,
        "pack_seconds_of_rank_0": pack.seconds,
        "sent_bytes_of_a_rank": max(map(len, packed[1:])),
        "gathered_bytes_on_rank_0": sum(map(len, packed)),
        "write_seconds_on_rank_0": save.seconds,
        "write_peak_bytes_on_rank_0": save.nbytes,
        "files": {path.name: path.stat().st_size for path in sorted(folder.glob("*.json"))},
        "before": former(gathered, folder),
    }
    figures["resume"] = _resume(folder, layout, config.optimizer.name)
    size = layout.expert_parallel_size
    figures["loads"] = [
        _load(Cluster(cluster.specs, other), config.optimizer.name, folder, gathered)
        for other in (
            layout,
            layout._replace(expert_parallel_size=size // 4),
            layout._replace(world_size=load_ranks, expert_parallel_size=min(size, load_ranks)),
            layout._replace(world_size=load_ranks, expert_parallel_size=min(size, load_ranks) // 4),
        )
    ]
    return figures


def _resume(folder: Path, layout: ParallelLayout, optimizer: str) -> dict[str, Any]:
    """What each rank reads of a checkpoint before any tensor, and what it checks."""
    from training.checkpoint.optimizer_state.adafactor import SavedState
    from training.checkpoint.store.index import TensorReader
    from training.checkpoint.store.manifest import check_sizes, read_manifest
    from training.checkpoint.store.state import read_folder

    with Peak() as sizes:
        check_sizes(folder, read_manifest(folder))
    with Peak() as metadata:
        share = read_manifest(folder)[1 :: layout.world_size]
        read_folder(folder)
        reader = TensorReader(folder)
        state = SavedState(folder) if optimizer == "adafactor" else None
    del reader, state
    return {
        "check_sizes_seconds_on_rank_0": sizes.seconds,
        "metadata_seconds": metadata.seconds,
        "metadata_peak_bytes": metadata.nbytes,
        "metadata_bytes": sum(path.stat().st_size for path in folder.glob("*.json")),
        "hashed_bytes": sum(record.size for record in share),
        "hashed_files": [record.name for record in share],
    }


def _load(cluster: Any, optimizer: str, folder: Path, gathered: Any) -> dict[str, Any]:
    """The most that one of three ranks reads of the tensor files, and in how long it finds out."""
    from benchmarks.many_ranks.loading import bytes_held, bytes_read

    figures = []
    for rank in sorted({0, cluster.layout.world_size // 2 + 13, cluster.layout.world_size - 1}):
        with Peak() as plan:
            nbytes = bytes_read(cluster, rank, optimizer, folder, gathered.shapes)
        figures.append(
            {
                "plan_seconds": plan.seconds,
                "files": len(nbytes),
                "read_bytes": nbytes.total(),
                "header_bytes": sum(gathered.headers[file] for file in nbytes),
                "held_bytes": bytes_held(cluster, rank, optimizer),
            }
        )
    layout = str(cluster.layout)
    return {"layout": layout} | {key: max(figure[key] for figure in figures) for key in figures[0]}


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of one optimizer and stage."""
    before, resume, files = figures["before"], figures["resume"], figures["files"]
    print(f"\n{name}: {figures['parameters']:,} parameters")
    print(
        f"save    a rank sends {figures['sent_bytes_of_a_rank'] / 1e3:.1f} kB; rank 0 gathers "
        f"{figures['gathered_bytes_on_rank_0'] / 1e6:.1f} MB and writes in {figures['write_seconds_on_rank_0']:.2f} s, "
        f"{figures['write_peak_bytes_on_rank_0'] / 1e6:.0f} MB at most\n"
        f"        before: each rank got {before['gathered_bytes_of_each_rank'] / 1e6:.1f} MB, which take "
        f"{before['unpickle_seconds_of_each_rank']:.2f} s to unpickle"
    )
    print("files   " + ", ".join(f"{file} {size / 1e3:,.0f} kB" for file, size in files.items()))
    print(
        f"resume  sizes on rank 0 {resume['check_sizes_seconds_on_rank_0']:.3f} s; each rank reads "
        f"{resume['metadata_bytes'] / 1e6:.2f} MB of metadata in {resume['metadata_seconds']:.3f} s, "
        f"{resume['metadata_peak_bytes'] / 1e6:.0f} MB at most; checks {resume['hashed_bytes'] / 1e9:.2f} GB "
        f"({', '.join(resume['hashed_files'])})\n"
        f"        before: indices of {before['index_bytes'] / 1e6:.1f} MB, {before['read_seconds_of_each_rank']:.2f} s"
    )
    for load in figures["loads"]:
        print(
            f"load    {load['layout']}: {load['read_bytes'] / 1e9:.3f} GB of {load['files']} files, "
            f"{load['read_bytes'] / load['held_bytes']:.4f} of what the rank keeps, and "
            f"{load['header_bytes'] / 1e6:.2f} MB of headers; planned in {load['plan_seconds']:.2f} s"
        )


def main() -> None:
    """Measure every optimizer and stage; print tables and a line of JSON."""
    print_anything()
    options = parse_arguments()
    began = time.process_time()
    hashlib.sha256(bytes(HASHED))
    rate = HASHED / (time.process_time() - began)
    results: dict[str, Any] = {"sha256_bytes_per_second": rate}
    for optimizer in options.optimizers.split(","):
        for stage in map(int, options.stages.split(",")):
            config = load_config(options.config, [f"optimizer.name={optimizer}"])
            layout = ParallelLayout(options.expert_parallel_size, options.ranks, stage, config.training.precision)
            folder = Path(tempfile.mkdtemp())
            try:
                name = f"{optimizer}, {layout}"
                results[name] = measure(config, layout, options.load_ranks, folder)
            finally:
                shutil.rmtree(folder)
            report(name, results[name])
    print(f"\nSHA-256: {rate / 1e9:.2f} GB/s")
    print(to_json(results))


if __name__ == "__main__":
    main()
