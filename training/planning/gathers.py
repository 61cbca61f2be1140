"""Which weights ZeRO 3 gathers, how often, and how many are whole at once: DeepSpeed's coordinator, played through.

ZeRO 3 gathers the weights of a module before it runs and releases them after, unless they are needed again soon: within
``stage3_max_reuse_distance`` elements of modules that run before, which for small models is everything, so that nothing
is gathered twice in a micro-batch. It prefetches those of later modules up to ``stage3_prefetch_bucket_size``, and
never releases parameters of at most ``stage3_param_persistence_threshold`` elements, which it gathers after each step.
``runtime/zero/partitioned_param_coordinator.py`` of DeepSpeed 0.19.8, which repeats what it has recorded in the first
micro-batch; here, of a micro-batch after that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from training.config.run import RunConfig
from training.planning.groups import Held, ZeroOptions, held_parameters
from training.planning.layout import Layout


@dataclass(frozen=True)
class Gathered:
    """Parameters that are gathered, as often as they are; ``most_live`` in elements."""

    in_micro_batch: tuple[Held, ...]
    after_step: tuple[Held, ...]
    most_live: int


@dataclass
class Module:
    """A module with parameters of its own: their indices, and the modules inside of it."""

    parameters: list[int]
    inner: list["Module"] = field(default_factory=list)


def gather(config: RunConfig, layout: Layout) -> Gathered:
    """Play one micro-batch through; of frozen parameters, which need less in the backward pass, as if trained."""
    held, options = held_parameters(config, layout), ZeroOptions.of(config, layout)
    persistent = [one.numel <= options.persistence for one in held]
    coordinator = _Coordinator(held, persistent, options, list(modules_in_order(held, layout)))
    coordinator.run()
    split = [one.replicas > 1 for one in held]  # parameters of one rank alone are whole
    after = tuple(one for one, kept, many in zip(held, persistent, split, strict=True) if kept and many)
    return Gathered(tuple(held[i] for i in coordinator.fetched if split[i]), after, coordinator.most_live)


def modules_in_order(held: Sequence[Held], layout: Layout) -> Iterator[Module]:
    """Yield the modules in the order in which a forward pass runs them: that of their parameters.

    The hidden biases of experts belong to a module inside of the experts that runs once for each of a rank's experts.
    """
    names = [one.shape.name.rpartition(".")[0] for one in held]
    outer: Module | None = None
    for name, indices in groupby(range(len(held)), key=names.__getitem__):
        module = Module(list(indices))
        if outer is not None and name.endswith("experts.hidden_bias"):
            experts = held[outer.parameters[0]].units
            outer.inner = [module] * experts
            continue
        if outer is not None:
            yield outer
        outer = module
    if outer is not None:
        yield outer


class _Coordinator:
    """The state of a ``PartitionedParameterCoordinator`` whose trace is complete."""

    def __init__(self, held: Sequence[Held], persistent: list[bool], options: ZeroOptions, modules: list[Module]):
        self.held, self.persistent, self.options = held, persistent, options
        self.calls = list(self._calls(modules, backward=False)) + list(self._calls(modules, backward=True))
        order = [module for starts, module in self.calls if starts]
        # Elements of the modules before each call; a parameter counts once for every call of a module that has it.
        sizes = [sum(held[i].numel for i in module.parameters) for module in order]
        self.before = [0, *accumulate(sizes)]
        self.queue = [(i, step) for step, module in enumerate(order) for i in module.parameters]
        self.uses: dict[int, list[int]] = {}
        for i, step in self.queue:
            self.uses.setdefault(i, []).append(step)
        self.position = self.step = self.available = 0
        self.reached = dict.fromkeys(range(len(held)), -1)  # step of each parameter's last use that was fetched for
        self.whole = {i for i, kept in enumerate(persistent) if kept}
        self.live = sum(held[i].numel for i in self.whole if held[i].replicas > 1)
        self.most_live = self.live
        self.fetched: list[int] = []

    def _calls(self, modules: Sequence[Module], *, backward: bool) -> Iterator[tuple[bool, Module]]:
        for module in reversed(modules) if backward else modules:
            yield True, module
            yield from self._calls(module.inner, backward=backward)
            yield False, module

    def run(self) -> None:
        for starts, module in self.calls:
            if starts:
                self._fetch(module)
            else:
                self._release(module)

    def _fetch(self, module: Module) -> None:
        for i in module.parameters:
            self._gather(i)
        missing = {i for i in module.parameters if self.reached[i] < self.step}
        popped: set[int] = set()
        while self.position < len(self.queue) and len(popped) < len(missing):
            i, last = self.queue[self.position]
            self.position += 1
            self.reached[i] = last
            popped.add(i)
        self._prefetch()
        self.step += 1

    def _prefetch(self) -> None:
        room = min(self.options.max_live - self.available, self.options.prefetch)
        chosen: list[int] = []
        numel = 0
        while self.options.prefetch and self.position < len(self.queue) and numel < room:
            i, last = self.queue[self.position]
            self.position += 1
            self.reached[i] = max(self.reached[i], last)
            if i not in self.whole and i not in chosen:
                chosen.append(i)
                numel += self.held[i].numel
        for i in chosen:
            self._gather(i)

    def _gather(self, i: int) -> None:
        if i in self.whole:
            return
        self.whole.add(i)
        self.fetched.append(i)
        self.available += self.held[i].numel
        if self.held[i].replicas > 1:
            self.live += self.held[i].numel
            self.most_live = max(self.most_live, self.live)

    def _release(self, module: Module) -> None:
        for i in module.parameters:
            if self.persistent[i] or i not in self.whole or self.reached[i] > self.step or self._is_near(i):
                continue
            self.whole.discard(i)
            self.available -= self.held[i].numel
            self.live -= self.held[i].numel if self.held[i].replicas > 1 else 0

    def _is_near(self, i: int) -> bool:
        """Whether a module that runs soon has the parameter."""
        later = next((step for step in self.uses[i] if step >= self.step), None)
        return later is not None and self.before[later] - self.before[self.step] < self.options.max_reuse
