"""Writes the modeling file, by which ``from_pretrained(…, trust_remote_code=True)`` needs nothing of this project.

In that file ``in_file`` stands in the place of this module, ``without_kernels`` in that of the kernels.
"""

import os
from pathlib import Path

from model.standalone.in_file import AUTO_MAP, MODELING_FILE
from model.standalone.joining import join

__all__ = ["AUTO_MAP", "MODELING_FILE", "modeling_code", "save_code"]

HEADER = '''"""ST-MoE (Zoph et al. 2022, arXiv 2202.08906), an encoder-decoder: needs torch and transformers alone.

Generated from the modules, named below, of the project that trained the model; do not edit. License: Apache-2.0.
"""
'''


def save_code(folder: str | os.PathLike) -> None:
    """Write ``modeling_st_moe.py`` into ``folder``, which is created if missing."""
    target = Path(folder) / MODELING_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(modeling_code(), encoding="utf-8")


def modeling_code() -> str:
    """Return the text of ``modeling_st_moe.py``. Raises ValueError, see ``join``."""
    return join(
        Path(__file__).parents[2],
        "model.st_moe",
        ("StMoeConfig", "StMoeForConditionalGeneration"),
        replaced={
            __name__: "model.standalone.in_file",
            "model.kernels.available": "model.standalone.without_kernels",
        },
        header=HEADER,
    )
