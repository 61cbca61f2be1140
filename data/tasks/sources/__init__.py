"""Where a task's rows come from: the Hugging Face Hub, files that packages ship, local JSON lines."""
