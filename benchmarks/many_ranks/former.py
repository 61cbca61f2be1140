"""The metadata as it was before, for comparison: every range an object, which all ranks got, and a line of JSON."""

import json
import pickle
import time
from pathlib import Path

from benchmarks.many_ranks.saved import Gathered
from common.strict_json import to_json
from training.checkpoint.optimizer_state.adafactor import INDEX_FILE as STATE_INDEX_FILE
from training.checkpoint.optimizer_state.adafactor import SavedState
from training.checkpoint.store.index import Index, StoredRange


def former(gathered: Gathered, folder: Path) -> dict[str, float]:
    """Measure the form of checkpoints of format 3.

    Args:
        gathered: of all ranks.
        folder: of the same checkpoint.

    Returns:
        Bytes that each rank got and seconds to unpickle them; bytes of the index files and seconds to read them.
    """
    metas = [gathered.captured.meta.unpack(packed) for packed in gathered.captured.packed]
    pickles = []
    for file, meta in zip(Index.read(folder).files, metas, strict=True):
        ranges = [
            (entry.name, entry.shape, entry.split_experts, StoredRange(start, stop, file), entry.frozen)
            for entry, (start, stop) in zip(meta.contents.entries, meta.contents.spans, strict=True)
            if start < stop
        ]
        pickles.append(pickle.dumps((ranges, meta.data, _names(meta.optimizer))))
    began = time.process_time()
    for pickled in pickles:
        pickle.loads(pickled)  # noqa: S301 - of this process's own
    seconds = time.process_time() - began
    text = to_json(_pieces(Index.read(folder)))
    state_text = ""
    if (folder / STATE_INDEX_FILE).exists():
        saved = SavedState(folder)
        state_text = to_json({"weight_map": {name: saved.file_of(name) for name in saved}})
    began = time.process_time()
    values = json.loads(text)
    _ = [[StoredRange(*stored) for stored in entry["pieces"]] for entry in values["parameters"].values()]
    _ = json.loads(state_text or "{}")
    return {
        "gathered_bytes_of_each_rank": sum(map(len, pickles)),
        "unpickle_seconds_of_each_rank": seconds,
        "index_bytes": len(text) + len(state_text),
        "read_seconds_of_each_rank": time.process_time() - began,
    }


def _names(optimizer: object) -> list[str]:
    if not isinstance(optimizer, dict):
        return []
    return [
        name
        for whole, fragments in optimizer.values()
        for name in [*whole, *(f"{tensor}/{start}-{stop}" for tensor, start, stop in fragments)]
    ]


def _pieces(index: Index) -> dict[str, object]:
    parameters = {
        name: {"shape": p.shape, "expert": p.split_experts, "pieces": [*index.stored(name, 0, p.numel)]}
        for name, p in index.parameters.items()
    }
    return {"states": index.states, "scalars": index.scalars, "parameters": parameters}
