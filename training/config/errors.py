"""The error of a mistake in a configuration."""

FP16_REFUSED = "overflows in T5-like models: use bf16 or fp32"


class ConfigError(ValueError):
    """A user's mistake: one line that names key, value and fix."""
