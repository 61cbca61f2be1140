"""Which layouts of a configuration fit a number of GPUs, in which order, and why the others do not fit."""
