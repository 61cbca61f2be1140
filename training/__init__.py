"""Ties model, data and optimizer to a DeepSpeed engine: configuration, loop, evaluation, checkpoints, metrics."""
