"""What a row says about the machine that made it."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.project import code_version


def device_name() -> str:
    """Return the name of the GPU or, without one, of the processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor_name()


def processor_name() -> str:
    """Return the name of the processor, with the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def circumstances() -> dict[str, Any]:
    """Return when and how a row was made: date, commit, and what else the machine was doing."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "git_commit": code_version()["git_commit"],
        "load_average": round(os.getloadavg()[0], 2),
    }
