"""Exports a run as a Hugging Face folder that needs nothing of this project, and fills spans with it."""
