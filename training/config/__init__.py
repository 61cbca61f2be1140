"""A run's configuration: the sections, and every check that needs no model."""
