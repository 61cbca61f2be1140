"""The report of one or several runs: ``python -m training.report runs/tiny``."""
