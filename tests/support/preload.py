"""What a test process's fork server imports before its first fork; see ``tests.support.forks``.

Importing alone: no thread, no process group and no device may exist when the server forks.
"""

import gc

import deepspeed
import hypothesis
import pytest
import tensorboard.backend.event_processing.event_accumulator
import torch._dynamo

import train
import training.export.export
import training.trainer

__all__ = ["deepspeed", "hypothesis", "pytest", "tensorboard", "torch", "train", "training"]

gc.freeze()  # forks share the pages of all that exists by now
