"""Prepares a dataset folder: fetches documents, writes shards, trains a vocabulary, collects statistics."""
