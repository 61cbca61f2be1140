"""The dense sub-layers of a block: attention, feed-forward, norm."""
