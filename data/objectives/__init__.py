"""Pretraining objectives: turn packs of tokens into examples."""
