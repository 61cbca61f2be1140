"""One process of a run: its rank, the run folder, the lock, stop requests, the watchdog."""
