"""Memory and time of building a model under ZeRO, module by module and whole, and numbers drawn per second.

python -m benchmarks.building                           # 1.5e9 parameters, two ranks, ZeRO 3, EP 2: 12 GB of memory
python -m benchmarks.building --d-model 256 --d-ff 1024 # less
python -m benchmarks.building --only drawing --threads 1,2,4 --device cuda

The reference, "whole", is what DeepSpeed does by itself: every rank holds its share of all weights before ZeRO 3
partitions it. Both must give the same weights, to the bit.
"""

import argparse

from benchmarks.building.drawing import measure_drawing
from benchmarks.building.memory import measure_building
from common.program import print_anything


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="blocks of encoder and decoder each (%(default)s)")
    parser.add_argument("--d-model", type=int, default=1536, help="st-moe-base: 768 (%(default)s)")
    parser.add_argument("--d-ff", type=int, default=7168, help="st-moe-base: 2048 (%(default)s)")
    parser.add_argument("--experts", type=int, default=16, help="experts of each sparse layer, as st-moe-base")
    parser.add_argument("--ranks", type=int, default=2, help="gloo processes (%(default)s)")
    parser.add_argument("--expert-parallel-size", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16", "bf16_autocast"), default="fp32")
    parser.add_argument("--threads", default="1,2", help="numbers of threads that draw, such as 1,2 (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the drawn tensors: cpu or cuda (%(default)s)")
    parser.add_argument("--only", choices=("drawing", "building"), help="measure only this (default: both)")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for."""
    print_anything()
    options = parse_arguments()
    if options.only != "building":
        measure_drawing(options)
    if options.only != "drawing":
        measure_building(options)


if __name__ == "__main__":
    main()
