"""Entry point of ``python -m studies.finetuning``; see ``study``."""

from common.exit_codes import end_quietly_on_interrupt

if __name__ == "__main__":
    end_quietly_on_interrupt()  # the imports below take a second

from common.program import run
from studies.finetuning.study import main

if __name__ == "__main__":
    run(main)
