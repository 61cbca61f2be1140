"""What each part of the model keeps in memory from the forward to the backward pass, counted from its configuration."""
