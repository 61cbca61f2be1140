"""Pretraining objectives: from packed tokens to examples."""
