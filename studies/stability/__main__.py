"""Entry point of ``python -m studies.stability``; see ``study``."""

import sys

from studies.stability.study import main

if __name__ == "__main__":
    sys.exit(main())
