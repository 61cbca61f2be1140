"""Checkpoints that load at any parallel layout."""
