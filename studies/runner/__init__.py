"""Runs of a study: making, starting, resuming and judging them."""
