"""One process of a run: its rank, the run folder, the lock, requests to stop."""
