"""ZeRO 3 without a second copy of float32 weights: the same training to the bit, with less memory."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import pytest
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from optim import stage_three
from optim.stage_three import weights_once
from tests.support.planned import masters, storage_bytes, weights
from tests.support.ranks import run_ranks
from tests.support.small import TWO_BLOCKS, global_batch, small_config
from training.engine import build
from training.engine.build import build_engine
from training.engine.parameters import engine_partitions
from training.engine.step import evaluate, update
