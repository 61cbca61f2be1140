"""What watches over a run: the guard, diagnosis, the watchdog."""
