"""What spreads the network's experts over the ranks of a DeepSpeed job."""
