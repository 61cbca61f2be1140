"""Adafactor's second moments of a partition, a few vector operations for all its tensors."""
