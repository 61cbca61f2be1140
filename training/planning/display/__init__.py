"""A plan as a terminal and a picture show it."""
