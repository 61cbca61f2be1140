"""What a run reports: metrics, throughput, progress."""
