"""The state format of each optimizer."""

from training.checkpoint.optimizer_state.adafactor import AdafactorState
from training.checkpoint.optimizer_state.by_rank import RankState
from training.checkpoint.optimizer_state.format import ElementState, StateFormat

FORMATS: dict[str, type[StateFormat]] = {
    "adafactor": AdafactorState,
    "adamw": ElementState,
    "adamw_8bit": RankState,
}


def state_format(optimizer: str) -> StateFormat:
    """Return the format for ``optimizer.name``."""
    return FORMATS[optimizer](optimizer)
