"""What it takes to build a model: memory, time, and numbers drawn per second."""
