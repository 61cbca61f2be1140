"""Side-by-side measurements against named peers, one command each."""
