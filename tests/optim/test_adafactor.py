"""Adafactor on one process, against Hugging Face's and against the paper's equations in float64."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as Reference

from model.config import StMoeConfig
from model.st_moe import StMoeForConditionalGeneration
from optim.adafactor import Adafactor
from optim.parameter import ExpertAxis, parameter_specs
from training.engine.parameters import model_parameter_specs

STEPS = 50
SHAPES = {
    "vector": (37,), "small": (12, 20), "narrow": (300, 9), "large": (130, 257), "tall": (400, 128),
    "square": (160, 160),
}  # fmt: skip


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    scales = dict(zip(SHAPES, (1.0, 0.05, 1e-4, 0.02, 0.3, 1.0), strict=True))  # 1e-4: below the floor of the scale
    return {
        name: nn.Parameter((torch.randn(shape, generator=generator) * scales[name]).to(dtype))
        for name, shape in SHAPES.items()
    }


def gradient(shape: tuple[int, ...], step: int, generator: torch.Generator) -> Tensor:
    """Rows and columns of unequal size, some rows without any gradient, and sizes that change so that clipping acts."""
    rows = torch.logspace(-3, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
    grad = torch.randn(shape, generator=generator) * rows * (3.0 if step % 7 == 6 else 0.3)
    grad[:: 5 + step % 3] = 0.0
    return grad


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for name, parameter in parameters.items():
        parameter.grad = gradient(SHAPES[name], step, generator).view(parameter.shape).to(parameter.dtype)


def relative_difference(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("clipping", [1.0, 0.1])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("min_dim", [1, 128])
def test_equals_hugging_face(clipping: float, beta1: float, weight_decay: float, min_dim: int):
    """Hugging Face factors all matrices: those that are smaller than ``min_dim`` are given to it as vectors."""
    ours, theirs = tensors(0), tensors(0)
    if min_dim == 128:
        for name in ("small", "narrow"):
            theirs[name] = nn.Parameter(theirs[name].detach().flatten())
    options = {"clip_threshold": clipping, "beta1": beta1 or None, "weight_decay": weight_decay}
    reference = Reference(theirs.values(), lr=0.03, relative_step=False, scale_parameter=True, **options)
    optimizer = Adafactor(
        ours.values(), parameter_specs(ours.items()), lr=0.03, update_clipping=clipping, beta1=beta1,
        weight_decay=weight_decay, min_dim_size_to_factor=min_dim,
    )  # fmt: skip
    clipped = 0
    for step in range(STEPS):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
        clipped += sum(int((s.clip > 1).sum()) for s in optimizer.statistics())
    assert clipped > 0
    for name in SHAPES:
        assert relative_difference(ours[name].flatten(), theirs[name].flatten()) < 1e-6, name


def paper(weights: Tensor, gradients: list[Tensor], *, lr: float, clipping: float, factored: bool) -> Tensor:
    """The optimizer of docs/method.md (Pre-training) for one tensor, in float64."""
    x, row, column, full = weights.double(), 0.0, 0.0, 0.0
    for t, gradient_ in enumerate(gradients):
        g = gradient_.double()
        beta2 = 1 - (t + 1) ** -0.8
        square = g * g + 1e-30
        if factored:
            row = beta2 * row + (1 - beta2) * square.mean(1)
            column = beta2 * column + (1 - beta2) * square.mean(0)
            second = torch.outer(row, column) / row.mean()
        else:
            second = full = beta2 * full + (1 - beta2) * square
        update = g / second.sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()) / clipping)
        x = x - lr * max(1e-3, float(x.square().mean().sqrt())) * update
    return x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("clipping", [1.0, 0.1])
def test_equals_the_papers_equations_in_float64(dtype: torch.dtype, tolerance: float, clipping: float):
    ours = tensors(0, dtype)
    start = {name: p.detach().clone() for name, p in ours.items()}
    seen: dict[str, list[Tensor]] = {name: [] for name in ours}
    optimizer = Adafactor(ours.values(), parameter_specs(ours.items()), lr=0.03, update_clipping=clipping)
    for step in range(STEPS):
        set_gradients(ours, step)
        for name, parameter in ours.items():
            assert parameter.grad is not None
            seen[name].append(parameter.grad.clone())
        optimizer.step()
        for name, parameter in ours.items():
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, seen[name][-1]), "gradients are not touched"
    for name, parameter in ours.items():
        factored = len(SHAPES[name]) == 2 and min(SHAPES[name]) >= 128
        expected = paper(start[name], seen[name], lr=0.03, clipping=clipping, factored=factored)
        assert relative_difference(parameter, expected) < tolerance, name


@pytest.mark.parametrize("unit_shape", [(130, 140), (9, 20), (50,)])
def test_experts_are_tensors_of_their_own(unit_shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    stacked = nn.Parameter(torch.randn(3, *unit_shape, generator=generator) * torch.tensor([1.0, 0.1, 1e-5]).view(
        -1, *[1] * len(unit_shape)
    ))  # fmt: skip
    apart = {str(e): nn.Parameter(stacked[e].detach().clone()) for e in range(3)}
    axis = ExpertAxis(7, range(4, 7), split=True)
    together = Adafactor([stacked], parameter_specs([("w", stacked)], {stacked: axis}), lr=0.03)
    separate = Adafactor(apart.values(), parameter_specs(apart.items()), lr=0.03)
    for step in range(10):
        stacked.grad = torch.stack([gradient(unit_shape, step + e, generator) for e in range(3)])
        for e in range(3):
            apart[str(e)].grad = stacked.grad[e].clone()
        together.step()
        separate.step()
    for e in range(3):
        assert torch.allclose(stacked[e], apart[str(e)], rtol=1e-6, atol=0)
    figures = [s.update_rms for s in separate.statistics()]
    assert torch.allclose(next(together.statistics()).update_rms, torch.cat(figures), rtol=1e-6)


def test_decay_and_floor_of_the_first_updates():
    """By hand: after one update of a vector V = G², so U is the gradient's sign, whatever its size."""
    vector = nn.Parameter(torch.tensor([3.0, -4.0, 0.0, 0.0]))  # RMS 2.5
    tiny = nn.Parameter(torch.full((4,), 1e-6))  # RMS below the floor 1e-3
    optimizer = Adafactor([vector, tiny], parameter_specs([("v", vector), ("t", tiny)]), lr=0.1)
    vector.grad, tiny.grad = torch.tensor([1e-3, -5.0, 7.0, 2.0]), torch.ones(4)
    optimizer.step()
    assert torch.allclose(vector.detach(), torch.tensor([2.75, -3.75, -0.25, -0.25]))
    assert torch.allclose(tiny.detach(), torch.full((4,), 1e-6 - 1e-4))
    # second update: beta2 = 1 - 2^-0.8 of V = 1, so 1 + 2^-0.8 (G² - 1)
    tiny.grad, vector.grad = torch.full((4,), 3.0), None
    rms = abs(1e-6 - 1e-4)
    optimizer.step()
    update = min(1.0, 3 / math.sqrt(1 + 2**-0.8 * 8))  # 1.17, clipped to 1
    assert update == 1.0
    assert torch.allclose(tiny.detach(), torch.full((4,), 1e-6 - 1e-4 - 0.1 * max(rms, 1e-3)))


def test_bad_gradients_and_weights():
    weights = nn.Parameter(torch.ones(4, 4))
    specs = parameter_specs([("w", weights)])
    weights.grad = torch.eye(4).to_sparse()
    with pytest.raises(TypeError, match="dense gradients"):
        Adafactor([weights], specs).step()
    low = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    low.grad = torch.ones_like(low)
    with pytest.raises(TypeError, match=r"float32 weights, not torch\.bfloat16"):
        Adafactor([low], parameter_specs([("w", low)])).step()
    stranger = nn.Parameter(torch.ones(4))
    optimizer = Adafactor([stranger], specs)
    stranger.grad = torch.zeros(4)
    optimizer.step()  # a rehearsal
    stranger.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()


def test_without_gradient_nothing_moves():
    for shape in ((7,), (130, 130)):
        weights = nn.Parameter(torch.ones(shape))
        optimizer = Adafactor([weights], parameter_specs([("w", weights)]))
        optimizer.step()
        assert not optimizer.named_state().keys() - {"step"}
        weights.grad = torch.zeros(shape)
        optimizer.step()
        assert torch.equal(weights.detach(), torch.ones(shape))


def test_state_is_named_and_comes_back():
    def make() -> tuple[dict[str, nn.Parameter], Adafactor]:
        parameters = tensors(0)
        return parameters, Adafactor(parameters.values(), parameter_specs(parameters.items()), lr=0.03, beta1=0.5)

    ours, optimizer = make()
    for step in range(6):
        set_gradients(ours, step)
        optimizer.step()
        if step == 3:
            state = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
            weights = {name: p.detach().clone() for name, p in ours.items()}
    assert {"large/row", "large/column", "vector/second_moment/0-37", "large/momentum/0-33410", "step"} < state.keys()
    again, resumed = make()
    for name, parameter in again.items():
        parameter.data.copy_(weights[name])
    resumed.load_named_state(state)
    for step in (4, 5):
        set_gradients(again, step)
        resumed.step()
    assert all(torch.equal(ours[name], again[name]) for name in SHAPES)
    del state["large/row"]
    with pytest.raises(ValueError, match=r"no large/row of shape \[130\]"):
        resumed.load_named_state(state)


def test_state_of_st_moe_base_is_small():
    """What a rank keeps with all parameters on it; AdamW keeps 200 %."""
    with torch.device("meta"):
        model = StMoeForConditionalGeneration(StMoeConfig(num_experts=16))
    optimizer = Adafactor(model.parameters(), model_parameter_specs(model))
    for parameter in model.parameters():
        optimizer._state_of(parameter)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(f"st-moe-base: {optimizer.state_nbytes:,} of {weights:,} bytes, {optimizer.state_nbytes / weights:.3%}")
    assert optimizer.state_nbytes < 0.02 * weights
