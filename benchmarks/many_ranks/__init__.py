"""What a run costs that grows with its ranks, measured for as many as wanted by one process."""
