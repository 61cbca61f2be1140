"""One process of a run: its rank, the run folder and its lock, stop requests."""
