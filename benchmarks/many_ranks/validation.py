"""The validation text at the start of a run: what the ranks of one host tokenize of it, together and alone.

python -m benchmarks.many_ranks.validation --config configs/tiny.yaml

The ranks are threads of this process, which call what ranks call. Needs the data set of the configuration.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.once_per_host import Launch
from common.program import print_anything
from common.strict_json import to_json
from data.streaming.loader import Batch
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer
from training.config.run import RunConfig, load_config


class CountingTokenizer(Tokenizer):
    """Counts what it is given.

    Attributes:
        characters: of all texts.
    """

    characters = 0

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """See ``Tokenizer``."""
        self.characters += sum(map(len, texts))
        return super().encode_batch(texts)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml", help="of the text (%(default)s)")
    parser.add_argument("--ranks", type=int, default=8, help="of the host (%(default)s)")
    return parser.parse_args()


def measure(config: RunConfig, ranks: int, launch: Launch | None) -> tuple[dict[str, float], list[Any]]:
    """Return seconds of a processor and tokenized characters of all ranks together, and their batches."""
    tokenizers = [CountingTokenizer(config.data.vocabulary) for _ in range(ranks)]

    def read(rank: int) -> list[Batch]:
        sizes: dict[str, Any] = {
            "rank": rank,
            "world_size": ranks,
            "batch_size": 1,
            "num_batches": config.training.eval_examples // ranks,
        }
        return validation_batches(config.data, tokenizers[rank], launch=launch, **sizes)

    began = time.process_time()
    with ThreadPoolExecutor(ranks) as pool:
        batches = list(pool.map(read, range(ranks)))
    seconds = time.process_time() - began
    return {"seconds": seconds, "characters": sum(tokenizer.characters for tokenizer in tokenizers)}, batches


def main() -> None:
    """Measure both ways, and check that they give the same; print a line each and one of JSON."""
    print_anything()
    options = parse_arguments()
    config = load_config(options.config)
    results: dict[str, Any] = {}
    found: list[Any] = []
    launches: dict[str, Callable[[], Launch | None]] = {
        "each rank": lambda: None,
        "one rank for all": lambda: Launch(f"benchmark {time.time_ns()}", options.ranks),
    }
    for name, launch in launches.items():
        results[name], batches = measure(config, options.ranks, launch())
        found.append(batches)
        figures = results[name]
        print(f"{name}: {figures['characters'] / 1e6:.2f} M characters, {figures['seconds']:.2f} s of a processor")
    same = all(
        (a[key] == b[key]).all()
        for one, other in zip(*found, strict=True)
        for a, b in zip(one, other, strict=True)
        for key in a
    )
    print("the examples are the same" if same else "the examples differ")
    print(to_json(results | {"same": bool(same)}))


if __name__ == "__main__":
    main()
