"""What `python -m data.prepare` does."""
