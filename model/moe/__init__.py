"""The sparse layer: router, gating, dispatch, experts."""
