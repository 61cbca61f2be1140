"""Endless, resumable batches: streams of examples, mixtures, worker processes and the loader."""
