"""Optimizers, schedules and parameter groups. Knows tensors, not models."""
