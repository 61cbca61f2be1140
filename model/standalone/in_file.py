"""Copies this file beside weights that are saved."""

import os
import shutil
from pathlib import Path

MODELING_FILE = "modeling_st_moe.py"
AUTO_MAP = {
    "AutoConfig": "modeling_st_moe.StMoeConfig",
    "AutoModelForSeq2SeqLM": "modeling_st_moe.StMoeForConditionalGeneration",
}


def save_code(folder: str | os.PathLike) -> None:
    """Write ``modeling_st_moe.py`` into ``folder``, which is created if missing."""
    target = Path(folder) / MODELING_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.resolve() != Path(__file__).resolve():
        shutil.copyfile(__file__, target)
