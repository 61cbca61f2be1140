"""Measurements, one command each: of layer and optimizer beside named peers, of data and checkpoints beside a limit."""
