"""A run's configuration: its sections, and all checks that need no model."""
