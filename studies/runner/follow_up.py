"""What a study does with a run after its training: a program in the run's slot, then a result of the study's own."""

from collections.abc import Sequence

from studies.runner.runs import Run


class FollowUp:
    """Nothing: a run is done when it is trained. A study that does more derives from this class."""

    def is_done(self, run: Run) -> bool:
        """Return whether nothing is left to do for the run."""
        return run.result().status != "unfinished"

    def program(self, run: Run, *, planned: bool = False) -> Sequence[str] | None:
        """Return the arguments of the Python interpreter that start the program which follows training.

        Args:
            run: of the study.
            planned: whether the run is still to be trained, as when a job script is written.

        Returns:
            None if there is no such program, or it has done its work.
        """
        return None

    def finish(self, run: Run) -> None:
        """Take the results of a run whose programs have ended."""


NOTHING = FollowUp()
