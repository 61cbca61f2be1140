"""Rows of tasks out of archives that package clients download: training sets, and evaluation splits."""
