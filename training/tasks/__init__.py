"""A trained model on text-to-text tasks: it answers by generation and by likelihood, and its answers are scored."""
