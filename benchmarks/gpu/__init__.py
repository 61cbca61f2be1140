"""Checks and measurements of the GPU path on one card: ``python -m benchmarks.gpu``."""
