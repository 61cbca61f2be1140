"""The weights that a new run begins with: those of a run, a checkpoint or an export (``training.init_from``)."""
