"""The guard against non-finite gradients and loss spikes, and its diagnosis."""
