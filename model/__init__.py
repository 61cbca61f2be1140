"""The ST-MoE network as a Hugging Face model: needs torch and transformers, runs on one process without DeepSpeed."""
