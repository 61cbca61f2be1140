"""The DeepSpeed engine and one step of it."""
