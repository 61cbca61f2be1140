"""Which weights ZeRO 3 gathers, how often, and how many are whole at once: DeepSpeed's coordinator, played through.

ZeRO 3 gathers the weights of a module before it runs and releases them after, unless they are needed again soon: within
``stage3_max_reuse_distance`` elements of modules that run before, which for small models is everything, so that nothing
is gathered twice in a micro-batch. It prefetches those of later modules up to ``stage3_prefetch_bucket_size``, and
never releases parameters of at most ``stage3_param_persistence_threshold`` elements, which it gathers after each step.
``runtime/zero/partitioned_param_coordinator.py`` of DeepSpeed 0.19.8, which repeats what it has recorded in the first
micro-batch; here, of a micro-batch after that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from model.architecture import Architecture
from training.config.run import RunConfig
from training.planning.groups import Held, ZeroOptions, held_parameters
from training.planning.layout import Layout


@dataclass(frozen=True)
class Gathered:
    """Parameters that are gathered, as often as they are.

    ``most_live``: elements that are gathered at once, with the second copy of those that are gathered together.
    """

    in_micro_batch: tuple[Held, ...]
    after_step: tuple[Held, ...]
    most_live: int


@dataclass(frozen=True)
class Module:
    """A module of the model: its own parameters, by index, and the modules that its forward pass calls, in order.

    DeepSpeed looks ahead at every call, of modules without parameters too. Before a module's backward pass it does so
    once for each of the outputs that have a gradient: ``outputs``, of which the losses of routers are two.
    """

    parameters: tuple[int, ...] = ()
    inner: tuple["Module", ...] = ()
    outputs: int = 1
    recomputed: bool = False  # whether its backward pass repeats its forward pass first


def gather(config: RunConfig, layout: Layout) -> Gathered:
    """Play one micro-batch through.

    Of frozen parameters, which need less in the backward pass, as if they were trained.
    """
    held, options = held_parameters(config, layout), ZeroOptions.of(config, layout)
    persistent = [one.numel <= options.persistence for one in held]
    names = {one.shape.name: index for index, one in enumerate(held)}
    coordinator = _Coordinator(held, persistent, options, _Tree(config.architecture(), names, layout).model())
    coordinator.run()
    split = [one.replicas > 1 for one in held]  # parameters of one rank alone are whole
    after = tuple(one for one, kept, many in zip(held, persistent, split, strict=True) if kept and many)
    return Gathered(tuple(held[i] for i in coordinator.fetched if split[i]), after, coordinator.most_live)


class _Tree:
    """Makes the modules of ``StMoeForConditionalGeneration``, in the order in which they are called."""

    def __init__(self, config: Architecture, names: Mapping[str, int], layout: Layout):
        self.config, self.names, self.layout = config, names, layout

    def model(self) -> Module:
        config = self.config
        assert config.num_decoder_layers is not None
        encoder = self._stack("encoder", config.num_layers, decoder=False)
        decoder = self._stack("decoder", config.num_decoder_layers, decoder=True)
        return Module(inner=(self._leaf("shared"), encoder, decoder, self._leaf("lm_head")))

    def _leaf(self, name: str) -> Module:
        own = (f"{name}.weight", f"{name}.scale")
        return Module(tuple(self.names[key] for key in own if key in self.names))

    def _stack(self, name: str, layers: int, *, decoder: bool) -> Module:
        blocks = [self._block(f"{name}.blocks.{i}", i, decoder=decoder) for i in range(layers)]
        ends = self._leaf(f"{name}.final_norm"), Module()
        begins = self._leaf(f"{name}.position_bias"), Module()
        return Module(inner=(*begins, *blocks, *ends), outputs=1 + sum(block.outputs - 1 for block in blocks))

    def _block(self, name: str, index: int, *, decoder: bool) -> Module:
        dropout, inner = Module(), []
        for kind in ("self_attention", "cross_attention") if decoder else ("self_attention",):
            projections = tuple(self._leaf(f"{name}.{kind}.{projection}") for projection in "qkvo")
            inner += [self._leaf(f"{name}.{kind}_norm"), Module(inner=projections), dropout]
        sparse = self.config.is_sparse_layer(index)
        of_block = self._sparse(f"{name}.feed_forward", decoder=decoder) if sparse else None
        own = [self._leaf(f"{name}.feed_forward_norm"), of_block or self._dense(f"{name}.feed_forward"), dropout]
        extra = [self._leaf(f"{name}.extra_norm"), self._dense(f"{name}.extra_feed_forward"), dropout]
        placed = {"before": extra + own, "after": own + extra, "none": own}
        inner += placed[self.config.extra_feed_forward] if sparse else own
        outputs = 1 if of_block is None else of_block.outputs
        return Module(inner=tuple(inner), outputs=outputs, recomputed=self.layout.recompute)

    def _dense(self, name: str) -> Module:
        config, parts = self.config, ["w_in"]
        parts += ["w_gate"] if config.feed_forward == "geglu" else []
        parts += ["hidden_bias"] if config.feed_forward_bias != "none" else []
        return Module(inner=tuple(self._leaf(f"{name}.{part}") for part in (*parts, "w_out")))

    def _sparse(self, name: str, *, decoder: bool) -> Module:
        config = self.config
        biases: tuple[Module, ...] = ()
        if config.feed_forward_bias != "none":  # called for each of a rank's experts
            held = config.num_experts // self.layout.expert_parallel_size
            biases = (self._leaf(f"{name}.experts.hidden_bias"),) * held
        weights = tuple(self.names[f"{name}.experts.{weight}"] for weight in ("w1", "w2", "w3"))
        balances = config.stack_gating(decoder=decoder) != "expert_choice"
        experts = Module(weights, biases)
        return Module(inner=(self._leaf(f"{name}.router"), experts), outputs=3 if balances else 2)


class _Coordinator:
    """The state of a ``PartitionedParameterCoordinator`` whose trace is complete."""

    def __init__(self, held: Sequence[Held], persistent: list[bool], options: ZeroOptions, model: Module):
        self.held, self.persistent, self.options = held, persistent, options
        self.calls = [*self._calls(model, backward=False), *self._calls(model, backward=True)]
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

    def _calls(self, module: Module, *, backward: bool) -> Iterator[tuple[bool, Module]]:
        """Yield when modules start (True) and end.

        A block is computed again when the first of its modules with weights, which is prepared before, asks for what it
        has not kept; up to the last module with weights, after which nothing else is asked for.
        """
        again = backward and module.recomputed
        for starts, called in self._calls_once(module, backward=backward):
            yield starts, called
            if again and starts and called.parameters:
                again = False
                forward = list(self._calls_once(module, backward=False))
                last = max(i for i, (begins, inner) in enumerate(forward) if begins and inner.parameters)
                yield from forward[: last + 1]

    def _calls_once(self, module: Module, *, backward: bool) -> Iterator[tuple[bool, Module]]:
        for _ in range(module.outputs if backward else 1):
            yield True, module
        for inner in reversed(module.inner) if backward else module.inner:
            yield from self._calls(inner, backward=backward)
        yield False, module

    def run(self) -> None:
        for starts, module in self.calls:
            if starts:
                self._fetch(module)
            else:
                self._release(module)

    def _fetch(self, module: Module) -> None:
        self._gather_together(module.parameters)
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
        self._gather_together(chosen)

    def _gather_together(self, indices: Sequence[int]) -> None:
        """Gather in one collective, from whose result every parameter is then copied."""
        new = [self.held[i].numel for i in indices if i not in self.whole and self.held[i].replicas > 1]
        for i in indices:
            self._gather(i)
        if len(new) > 1:
            self.most_live = max(self.most_live, self.live + sum(new))

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
