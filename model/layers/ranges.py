"""Named ranges of a profile, such as ``router`` and ``all_to_all``."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

# The ranges of a sparse layer, forward; those of all-to-alls, backward too.
ROUTER, DISPATCH, ALL_TO_ALL, EXPERTS, COMBINE = "router", "dispatch", "all_to_all", "experts", "combine"
_NO_RANGE = nullcontext()


def named_range(name: str) -> AbstractContextManager[Any]:
    """Return a context whose operations a running profiler shows below ``name``.

    Without a profiler it does nothing: ``record_function`` would cost tens of microseconds on the host even then.
    """
    return profiler.record_function(name) if profiler._is_profiler_enabled else _NO_RANGE
