"""Text to batches: corpora, vocabulary, span corruption, resumable loading. Knows nothing of the model."""
