"""Text to batches: sources, vocabulary, objectives, resumable streams. Does not depend on the model."""
