"""The sparse layer: router, gatings, dispatch, experts."""
