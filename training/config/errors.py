"""Mistakes of users."""

FP16_REFUSED = "overflows in T5-like models: use bf16 or fp32"


class ConfigError(ValueError):
    """A mistake of the user's: one line that names key, value and fix."""
