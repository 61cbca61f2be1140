"""The JSON that this project writes, as the standard has it, so that every reader takes it.

Python's own ``json`` writes NaN and Infinity, which are not JSON: orjson, JavaScript and most databases refuse them.
"""

import json
import math
from typing import Any


def to_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Return ``value`` as JSON. Raises ValueError if it holds a number that is not finite: see ``finite_or_null``."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def finite_or_null(value: Any) -> Any:
    """Return ``value`` with None, JSON's null, in place of every float that is not finite, in dicts and lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value
