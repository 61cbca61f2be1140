"""Metrics of a run: columns, monitors, the writer, the progress bar."""
