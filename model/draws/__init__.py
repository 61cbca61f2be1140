"""Random numbers for the parameters of a model."""
