"""Monitors: what is measured of a run."""
