"""One logical stream of a mixture of tasks.

Global example n is an example of the task in whose interval of [0, 1) point n of a low-discrepancy sequence lies. Task
t's examples come in an order that is drawn anew for each epoch of the task, so that all streams together give each of
them once per epoch. Nothing depends on the number of streams, ranks or workers but who gives an example.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.objectives.text_to_text import TextToText
from data.streaming.corpus import TASK_ORDER
from data.streaming.mixture import GOLDEN_RATIO, UNIT
from data.streaming.stream import DOCUMENTS, ROWS, Example
from data.streaming.task_examples import TaskExamples
from data.tasks import mixing_rates

CUT_INPUTS, CUT_TARGETS = "cut_inputs", "cut_targets"


def task_shares(config: DataConfig, tasks: Sequence[TaskExamples]) -> dict[str, float]:
    """Return the share of the examples that each task has, by name. Raises DataError: a task has no examples."""
    return mixing_rates({task.name: len(task) for task in tasks}, config.mixing_cap, float(config.mixing_temperature))


class TaskOrder:
    """The tasks in the order of their global examples, and the examples of each task in that of its epochs.

    Args:
        tasks: of the mixture.
        shares: of the examples, by task; they add up to 1.
        seed: ``data.seed``.
    """

    def __init__(self, tasks: Sequence[TaskExamples], shares: Sequence[float], seed: int) -> None:
        self.tasks, self._seed = tasks, seed
        self._bounds = np.array([int(end * UNIT) for end in np.cumsum(shares)[:-1]], np.uint64)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def tasks_of(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the task of each of ``count`` global examples from ``first`` on."""
        numbers = np.arange(first, first + count, dtype=np.uint64)
        points = numbers * np.uint64(GOLDEN_RATIO)  # modulo 2^64
        return np.searchsorted(self._bounds, points, side="right")

    def pair(self, task: int, drawn: int) -> tuple[str, str]:
        """Return the texts of a task's example after ``drawn`` earlier ones."""
        epoch, place = divmod(drawn, len(self.tasks[task]))
        if self._orders.get(task, (-1,))[0] != epoch:
            rng = np.random.default_rng((TASK_ORDER, self._seed, task, epoch))
            self._orders[task] = epoch, rng.permutation(len(self.tasks[task]))
        return self.tasks[task].pairs[int(self._orders[task][1][place])]


class TaskStream:
    """Every ``num_streams``-th global example; has the methods of ``MixtureStream``.

    Args:
        number: of this logical stream.
        num_streams: of all streams.
        order: of the global examples.
        encoder: of the texts.
    """

    def __init__(self, number: int, num_streams: int, order: TaskOrder, encoder: TextToText) -> None:
        self._number, self._num_streams, self._order, self._encoder = number, num_streams, order, encoder
        self._next = number  # global example
        self._drawn = self._tasks(0, number)  # of each task, before that
        self._given = [0] * len(order.tasks)  # by this stream
        self._tokens = [0] * len(order.tasks)
        self._cut = [Counter[str]() for _ in order.tasks]

    def _tasks(self, first: int, count: int) -> NDArray[np.int64]:
        return np.bincount(self._order.tasks_of(first, count), minlength=len(self._order.tasks))

    def next_example(self) -> Example:
        """Return the next example. Raises DataError: see ``TaskExamples.pairs``."""
        task = int(self._order.tasks_of(self._next, 1)[0])
        drawn = int(self._drawn[task])
        encoded = self._encoder.encode(*self._order.pair(task, drawn))
        self._drawn = self._drawn + self._tasks(self._next, self._num_streams)
        self._next += self._num_streams
        self._given[task] += 1
        self._tokens[task] += self._encoder.count(encoded)
        self._cut[task].update({CUT_INPUTS: int(encoded.cut_inputs), CUT_TARGETS: int(encoded.cut_targets)})
        epoch, number = divmod(drawn, len(self._order.tasks[task]))
        return Example(encoded.inputs_L, encoded.labels_T, epoch, number)

    def state_dict(self) -> dict[str, Any]:
        """Return position and counts as JSON values, by task what ``MixtureStream`` has by source."""
        drawn = [int(count) for count in self._drawn]
        return {"next": self._next, "sources": [self._state_of(task, drawn[task]) for task in range(len(drawn))]}

    def _state_of(self, task: int, drawn: int) -> dict[str, Any]:
        counts = self._cut[task] + Counter({ROWS: self._given[task], DOCUMENTS: self._given[task]})
        source = self._order.tasks[task]
        if self._number == 0:  # one of all streams counts what was skipped when the files were read
            counts += source.bad_rows
        return {
            "drawn": drawn,
            "epoch": drawn // len(source),
            "examples_given": self._given[task],
            "tokens_given": self._tokens[task],
            "counts": dict(counts),
            "pack_counts": {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last example returned before ``state_dict``."""
        sources = state["sources"]
        self._next = state["next"]
        self._drawn = np.array([source["drawn"] for source in sources], np.int64)
        self._given = [source["examples_given"] for source in sources]
        self._tokens = [source["tokens_given"] for source in sources]
        self._cut = [
            Counter({kind: source["counts"].get(kind, 0) for kind in (CUT_INPUTS, CUT_TARGETS)}) for source in sources
        ]
