"""What TensorBoard shows of a run: a view of ``metrics.jsonl`` and ``examples.jsonl``."""
