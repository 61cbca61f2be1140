"""Sources of text as shards of rows: local files, URLs and the Hugging Face Hub."""
