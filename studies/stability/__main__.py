"""Entry point of ``python -m studies.stability``; see ``study``."""

from common.program import run
from studies.stability.study import main

if __name__ == "__main__":
    run(main)
