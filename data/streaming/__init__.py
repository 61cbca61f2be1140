"""Endless, resumable batches: streams of examples, mixtures, workers, the loader."""
