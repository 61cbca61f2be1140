"""One rank that reads the training data and writes down what it read: tests start it, kill it and start it again.

    python -m tests.support.data_rank CONFIG_JSON RANK WORLD_SIZE FOLDER STEP

continues after step STEP, from the states that the ranks of the last start wrote (0: from the beginning). Every few
steps it writes ``step_<step>_<rank>_of_<world size>.json``: its state, and the text of its examples since the last, per
stream.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from data.config import DataConfig
from data.streaming.loader import PretrainingLoader, merge_states
from data.tokenizer import Tokenizer
from tests.support.examples import raw_tokens

GLOBAL_BATCH = 16
SAVE_EVERY = 5


def step_files(folder: Path, step: int) -> list[Path]:
    """Return the files that the ranks wrote at a step, none if one is missing."""
    files = sorted(folder.glob(f"step_{step:06d}_*.json"))
    world = {int(file.stem.rpartition("_")[2]) for file in files}
    return files if world == {len(files)} else []


def main(config: DataConfig, rank: int, world_size: int, folder: Path, step: int) -> None:
    """Read until killed."""
    tokenizer = Tokenizer(config.vocabulary)
    batch_size = GLOBAL_BATCH // world_size
    loader = PretrainingLoader(config, tokenizer, rank=rank, world_size=world_size, batch_size=batch_size)
    if step:
        loader.load_state_dict(
            merge_states([json.loads(file.read_text())["state"] for file in step_files(folder, step)])
        )
    read: dict[int, list[list[int]]] = defaultdict(list)
    while True:
        batch = loader.next_batch()
        for i, (inputs, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
            example = step * GLOBAL_BATCH + rank + i * world_size
            read[example % config.num_streams].append(raw_tokens(inputs, labels, tokenizer))
        step += 1
        if step % SAVE_EVERY == 0:
            content = {"state": loader.state_dict(), "read": read, "retries": loader.metrics()["data_retries"]}
            partial = folder / f".{rank}.partial"
            partial.write_text(json.dumps(content))
            partial.rename(folder / f"step_{step:06d}_{rank}_of_{world_size}.json")
            read.clear()


if __name__ == "__main__":
    main(DataConfig(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
