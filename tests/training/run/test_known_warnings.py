"""Only the warnings that are named are silenced, and they are still those of the installed versions."""

from importlib.util import find_spec
from pathlib import Path

from tests.support.launch import python
from training.run.known_warnings import UNTESTED_OPTIMIZER

WARN = """
import logging, os, sys, warnings
from training.run.known_warnings import UNTESTED_OPTIMIZER, silence_known_warnings
if sys.argv[1] == "silent":
    silence_known_warnings()
    silence_known_warnings()
import torch
import torch.distributed as dist
from deepspeed.utils import logger
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
dist.all_gather_into_tensor(torch.empty(4), torch.ones(4))
dist.reduce_scatter_tensor(torch.empty(4), torch.ones(4))
logger.warning(UNTESTED_OPTIMIZER)
logger.warning("another warning of DeepSpeed")
warnings.warn("`torch.distributed.gather` is deprecated", FutureWarning)
"""


def test_the_named_warnings_and_no_others_are_silent(tmp_path: Path):
    shown, program = {}, tmp_path / "warn.py"
    program.write_text(WARN)
    for mode in ("loud", "silent"):
        result = python(str(program), mode, str(tmp_path / mode))
        assert result.returncode == 0, result.stderr
        shown[mode] = result.stdout + result.stderr
    for text in (
        "`torch.distributed.all_gather_into_tensor` is",
        "`torch.distributed.reduce_scatter_tensor` is",
        "****",
    ):
        assert text in shown["loud"]
        assert text not in shown["silent"]
    for text in ("another warning of DeepSpeed", "FutureWarning: `torch.distributed.gather` is deprecated"):
        assert text in shown["silent"]


def test_deepspeed_still_logs_this_text():
    package = find_spec("deepspeed")
    assert package is not None
    assert package.origin is not None
    assert UNTESTED_OPTIMIZER in Path(package.origin).with_name("runtime").joinpath("engine.py").read_text()
