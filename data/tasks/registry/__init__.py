"""The tasks, one entry each, and the names of groups of them."""
