"""Joins the package to one file, which travels with a saved model."""
