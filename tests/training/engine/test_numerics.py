"""The settings of torch that a run makes."""

import os

import torch

from tests.support.forks import fork
from training.engine.numerics import set_numerics


def in_a_run(deterministic: bool) -> None:
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.set_float32_matmul_precision("high")  # as an image of a vendor may set it
    set_numerics(deterministic=deterministic)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic


def test_float32_is_float32_and_sums_have_an_order_where_asked_for() -> None:
    for deterministic in (False, True):
        process = fork(in_a_run, deterministic)
        process.join(60)
        assert process.exitcode == 0
