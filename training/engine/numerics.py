"""Torch's global settings of a run that decide which kernels compute, and so its numbers."""

import os

import torch


def set_numerics(*, deterministic: bool) -> None:
    """Choose kernels; to be called before the first matrix product.

    - No TF32: float32 products, the router's above all, have float32's 24 bits, whatever the environment asks for.
    - No attention kernel of cuDNN, see ``model.layers.attention.KERNELS``.

    Args:
        deterministic: see ``training.deterministic``.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        # cuBLAS reads it when it makes its first handle; two of its workspaces are shared by streams otherwise.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)
