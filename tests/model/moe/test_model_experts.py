"""The experts' own derivatives against autograd in float64, in every form and dtype."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.config import StMoeConfig
from model.initialization import initialize_weights
from model.moe import grouped_geglu, relu_experts
from model.moe.experts import Experts
from model.moe.grouped_geglu import ReusedMemory, geglu_grouped
from model.moe.relu_experts import relu_grouped

D, F, E = 16, 24, 4
RAGGED = [5, 0, 11, 2]


def make_experts(**options: Any) -> Experts:
    config = StMoeConfig(d_model=D, d_ff=F, num_experts=E, initializer_scale=2.0, **options)
    experts = Experts(config, E)
    initialize_weights(experts, config, seed=0)
    return experts


def make_rows(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(rows, D, generator=source).to(dtype) for _ in range(2))
    return x.requires_grad_(), grad


def reference(
    experts: Experts, rows: Tensor, grad: Tensor, counts: list[int], dropout: Tensor | None = None
) -> list[Tensor]:
    """Output and gradients of rows, w1, w2, w3 in float64, by autograd through one small matrix product at a time."""
    x, *weights = (t.detach().double().requires_grad_() for t in (rows, experts.w1, experts.w2, experts.w3))
    w1, w2, w3 = weights
    outputs, start = [], 0
    for e, count in enumerate(counts):
        part = x[start : start + count]
        first, second = part @ w1[e].T, part @ w3[e].T
        gated = functional.gelu(first, approximate="tanh") * second
        hidden = gated if experts.gated else functional.relu(torch.cat((first, second), dim=-1))
        if dropout is not None:
            hidden = hidden * dropout[start : start + count].double()
        outputs.append(hidden @ w2[e].T)
        start += count
    outputs.append(torch.zeros(len(x) - start, D, dtype=torch.float64))
    y = torch.cat(outputs)
    return [y, *torch.autograd.grad(y, (x, *weights), grad.double())]


def assert_equals_reference(experts: Experts, run: Any, dtype: torch.dtype, counts: list[int], rows: int) -> None:
    x, grad = make_rows(rows, dtype)
    y = run(x)
    assert y.dtype == dtype
    weights = (experts.w1, experts.w2, experts.w3)
    actual = [y, *torch.autograd.grad(y, (x, *weights), grad)]
    assert [g.dtype for g in actual[2:]] == [w.dtype for w in weights]
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    for name, a, e in zip(("y", "rows", "w1", "w2", "w3"), actual, reference(experts, x, grad, counts), strict=True):
        assert (a.double() - e).abs().max() <= tolerance * e.abs().max(), name


@pytest.mark.parametrize("form", ["geglu", "relu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [None, RAGGED])
def test_output_and_gradients_equal_autograd_in_float64(form: str, dtype: torch.dtype, counts: list[int] | None):
    experts = make_experts(feed_forward=form).to(dtype)
    given = None if counts is None else torch.tensor(counts)
    assert_equals_reference(experts, lambda x: experts(x, given), dtype, counts or [5] * E, 20)


@pytest.mark.parametrize("form", ["geglu", "relu"])
def test_float32_weights_on_bf16_rows_as_under_autocast(form: str):
    experts = make_experts(feed_forward=form)
    assert_equals_reference(experts, experts, torch.bfloat16, [5] * E, 20)


@pytest.mark.parametrize("form", ["geglu", "relu"])
@pytest.mark.parametrize("counts", [None, RAGGED])
@pytest.mark.parametrize(("weights", "keep"), [(torch.bfloat16, True), (torch.float32, True), (torch.float32, False)])
def test_grouped_products_equal_autograd_in_float64(
    form: str, counts: list[int] | None, weights: torch.dtype, keep: bool
):
    experts = make_experts(feed_forward=form).to(weights)
    given = None if counts is None else torch.tensor(counts)
    stacks = (experts.w1, experts.w2, experts.w3)

    def run(x: Tensor) -> Tensor:
        return (geglu_grouped if experts.gated else relu_grouped)(x, given, *stacks, keep=keep)

    assert_equals_reference(experts, run, torch.bfloat16, counts or [5] * E, 20)


@pytest.mark.parametrize("counts", [None, RAGGED])
@pytest.mark.parametrize(
    "options", [{}, {"feed_forward": "relu"}, {"feed_forward_bias": "multiplicative"}], ids=lambda o: str(o)
)
def test_expert_dropout_drops_hidden_activations_in_training_alone(options: dict[str, Any], counts: list[int] | None):
    experts = make_experts(expert_dropout_rate=0.4, **options).double()
    x, grad = make_rows(20, torch.float64)
    given = None if counts is None else torch.tensor(counts)
    experts.eval()
    assert torch.equal(experts(x, given), make_experts(**options).double()(x, given))
    experts.train()
    torch.manual_seed(5)
    y = experts(x, given)
    torch.manual_seed(5)
    dropout = torch.empty(20, F, dtype=torch.float64).bernoulli_(0.6) / 0.6
    assert 0.5 < (dropout != 0).double().mean() < 0.7
    actual = [y, *torch.autograd.grad(y, (x, experts.w1, experts.w2, experts.w3), grad)]
    for name, a, e in zip(
        ("y", "rows", "w1", "w2", "w3"), actual, reference(experts, x, grad, counts or [5] * E, dropout), strict=True
    ):
        assert (a - e).abs().max() <= 1e-12 * e.abs().max(), name


@pytest.mark.parametrize("form", ["geglu", "relu"])
@pytest.mark.parametrize("by_groups", [False, True])
def test_frozen_experts_cost_no_gradient_and_pass_on_that_of_their_rows(
    form: str, by_groups: bool, monkeypatch: pytest.MonkeyPatch
):
    products: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        products.append(1)
        return functional.grouped_mm(*arguments, **options)

    for module in (grouped_geglu, relu_experts):
        monkeypatch.setattr(module, "grouped_mm", counted)
    experts = make_experts(feed_forward=form).to(torch.bfloat16 if by_groups else torch.float32)
    x, grad = make_rows(20, experts.w1.dtype)

    def gradient_of_rows() -> Tensor:
        products.clear()
        stacks = (experts.w1, experts.w2, experts.w3)
        of_groups = geglu_grouped if experts.gated else relu_grouped
        y = of_groups(x, None, *stacks) if by_groups else experts(x)
        return torch.autograd.grad(y, x, grad)[0]

    expected, before = gradient_of_rows(), len(products)
    experts.gradient_memory = tuple(ReusedMemory() for _ in range(3))
    experts.requires_grad_(False)
    assert torch.equal(gradient_of_rows(), expected)
    assert all(memory._storage is None for memory in experts.gradient_memory)
    assert len(products) < before or not by_groups


@pytest.mark.parametrize("options", [{"feed_forward": "relu"}, {"feed_forward_bias": "additive"}, {}])
def test_rows_of_no_expert_come_out_as_zero_without_gradient(options: dict[str, Any]):
    experts = make_experts(**options)
    x, _ = make_rows(20)
    y = experts(x, torch.tensor([3, 0, 4, 1]))
    assert (y[8:] == 0).all()
    assert (y[:8] != 0).any(-1).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad[8:] == 0).all()
    assert (grad[:8] != 0).any(-1).all()
    alone = experts(x[:8], torch.tensor([3, 0, 4, 1]))
    assert torch.equal(y[:8], alone)


def test_inference_keeps_nothing_and_gives_the_same():
    experts = make_experts()
    x, _ = make_rows(20)
    with torch.no_grad():
        y = experts(x)
    assert not y.requires_grad
    assert torch.equal(y, experts(x))


def test_used_twice_gradients_add_up():
    experts = make_experts()
    x, grad = make_rows(20)
    y = experts(x)
    (experts(y) * grad).sum().backward()
    _, grad_y, *second_use = reference(experts, y, grad, [5] * E)
    _, _, *first_use = reference(experts, x, grad_y, [5] * E)
    for weight, first, second in zip((experts.w1, experts.w2, experts.w3), first_use, second_use, strict=True):
        torch.testing.assert_close(weight.grad.double(), first + second, rtol=1e-4, atol=1e-4)


def test_gradients_accumulate_and_memory_is_reused_only_when_free():
    experts = make_experts()
    x, grad = make_rows(20)

    def backward() -> None:
        experts(x).backward(grad)

    backward()
    held = experts.w1.grad
    assert held is not None
    first = held.clone()
    backward()  # accumulates: the first gradient is in use
    torch.testing.assert_close(experts.w1.grad, 2 * first)
    kept = experts.w1.grad[0].detach().numpy()  # an alias that autograd does not know of
    before = kept.copy()
    experts.zero_grad()
    del held
    backward()
    assert (kept == before).all()
    torch.testing.assert_close(experts.w1.grad, first)


def test_reused_memory():
    memory, like = ReusedMemory(), torch.ones(3, 4)
    a = memory.empty_like(like)
    assert (a.shape, a.dtype, a.is_contiguous()) == (like.shape, like.dtype, True)
    address = a.data_ptr()
    view = a[1:]
    del a
    b = memory.empty_like(like)
    assert b.data_ptr() != view.untyped_storage().data_ptr()
    address = b.data_ptr()
    del b
    assert memory.empty_like(like).data_ptr() == address
    assert memory.empty_like(torch.ones(5)).shape == (5,)
    assert copy.deepcopy(memory)._storage is None
