"""The ST-MoE network in plain PyTorch: runs on any device, on one process, without DeepSpeed."""
