"""Time and memory of the sparse layer's forward and backward pass, beside four peers and its limit.

Peers: DeepSpeed's ``MoE`` and ``AutoEPMoELayer``, st-moe-pytorch, Hugging Face's Switch layer.

python benchmarks/moe_layer.py            # a CPU: float32 and bfloat16; a GPU, where there is one: bfloat16
python benchmarks/moe_layer.py --quick    # a smoke test: the numbers mean nothing
"""

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"d_model": 512, "d_ff": 1408, "experts": [16, 64], "tokens": [4096, 16384]},
    "cuda": {"d_model": 1024, "d_ff": 2816, "experts": [32], "tokens": [16384, 65536]},
    "quick": {"d_model": 32, "d_ff": 48, "experts": [4], "tokens": [128, 256]},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each (default 7; their median counts)")
    parser.add_argument("--experts", type=int, nargs="+", help="default: 16 64 on a CPU, 32 on a GPU")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 4096 16384 on a CPU, 16384 65536 on a GPU")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", help="default: both on a CPU, bfloat16 on a GPU")
    parser.add_argument("--no-ranks", action="store_true", help="skip the measurement of two ranks on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of JSON and plot")
    return parser.parse_args()


def main() -> None:
    """Measure every cell, then two ranks; print the results and write them as JSON and plot."""
    from common.program import print_anything

    print_anything()
    arguments = parse_arguments()
    from benchmarks.moe_cell import measure_cell
    from benchmarks.moe_peers import Case
    from benchmarks.moe_ranks import weak_scaling
    from benchmarks.moe_report import format_cell, format_ranks, plot, write_json

    device = "cuda" if torch.cuda.is_available() and not arguments.quick else "cpu"
    sizes = SIZES["quick" if arguments.quick else device]
    dtypes = arguments.dtypes or (["bfloat16"] if device == "cuda" else list(DTYPES))
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cells": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"moe_layer_{device}.json"
    for tokens in arguments.tokens or sizes["tokens"]:
        for name in dtypes:
            for experts in arguments.experts or sizes["experts"]:
                case = Case(tokens, experts, sizes["d_model"], sizes["d_ff"], DTYPES[name], device)
                results["cells"].append(measure_cell(case, arguments.repeats))
                print(format_cell(results["cells"][-1]), flush=True)
                write_json(results, file)  # keeps the measured cells if the run is interrupted
    if device == "cpu" and not arguments.no_ranks:  # on a single GPU two ranks would share it
        case = Case(sizes["tokens"][0], sizes["experts"][0], sizes["d_model"], sizes["d_ff"], torch.float32, device)
        results["ranks"] = {"tokens": case.tokens, "experts": case.experts}
        results["ranks"] |= weak_scaling(case.config, case.tokens, arguments.repeats)
        print(format_ranks(results["ranks"]), flush=True)
    plot(write_json(results, file), file.with_suffix(".png"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
