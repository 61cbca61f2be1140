"""Compilation of the blocks of a model by torch.compile, and of nothing else."""

import importlib

import torch
from deepspeed.runtime import compiler

from model.st_moe import StMoeForConditionalGeneration
from model.transformer import Block

# Kinds of blocks (encoder or decoder, dense or sparse, cut in two by its sparse layer) x training or evaluation x what
# else dynamo may guard on. Blocks of a kind share their code. At the limit, dynamo would continue without compiling.
VARIANTS = 64


def compile_blocks(model: StMoeForConditionalGeneration, backend: str = "inductor") -> None:
    """Let every block of ``model`` compile itself at its first call; names of parameters stay as they are.

    The sparse layers stay as they are too: their products and copies have kernels of their own, and their all-to-alls
    are not to be traced.

    Args:
        model: not yet called.
        backend: of torch.compile; others than ``inductor`` are for tests.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, backend=backend)


def import_muon() -> None:
    """Import DeepSpeed's Muon, which no run uses, without compiling it.

    ``deepspeed.initialize`` imports it to know its class. Its functions are decorated with ``torch.compile``, for which
    torch imports its whole compiler: as long as the rest of building an engine of a small model.
    """
    compile_function = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_function
