"""``train.py --dry-run``: the job of one rank of a cluster, whatever machine this is."""
