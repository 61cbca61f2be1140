"""Processor time and peak memory of a block of code in this process."""

import contextlib
import gc
import time
from pathlib import Path
from types import TracebackType


class Peak:
    """Context manager.

    Attributes:
        seconds: of a processor.
        nbytes: by which the resident memory grew at most; 0 where the system does not tell.
    """

    def __enter__(self) -> "Peak":
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        self.before, self.began = _status("VmRSS"), time.process_time()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.seconds = time.process_time() - self.began
        self.nbytes = max(0, _status("VmHWM") - self.before)


def _status(key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0
