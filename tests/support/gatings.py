"""Every gating, as options of ``StMoeConfig``."""

from typing import Any

GATINGS: dict[str, dict[str, Any]] = {
    "top_n": {"gating": "top_n"},
    "batch_prioritized": {"gating": "top_n", "batch_prioritized": True},
    "flaxformer": {"gating": "flaxformer"},
    "flaxformer_prioritized": {"gating": "flaxformer", "batch_prioritized": True},
    "expert_choice": {"gating": "expert_choice"},
    "dropless": {"gating": "top_n", "capacity": "dropless"},
    "dropless_flaxformer": {"gating": "flaxformer", "capacity": "dropless"},
}
