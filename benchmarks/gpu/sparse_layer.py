"""Steps 2 and 9: the grouped products of the experts against float64, and the whole sparse layer beside its peers.

Shape suffixes: E = experts, R = rows of all of them, r = rows of one, d = d_model, F = d_ff.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.accounting import median_seconds, profile
from benchmarks.gpu.results import Report
from benchmarks.gpu.setting import Setting
from benchmarks.measure import Step, interleaved_medians
from benchmarks.moe_cell import make_input, measure_cell
from benchmarks.moe_layer import SIZES
from benchmarks.moe_peers import CONTENDERS, LIMITS, Case, build
from model.kernels.available import torch_only, usable
from model.layers.geglu import differentiate, hidden_of
from model.moe.dispatch import combine, dispatch
from model.moe.grouped_geglu import geglu_grouped
from model.moe.router import route
from model.moe.router_product import router_product
from model.moe.routing import Routing

NAMES = ("output", "rows", "w1", "w2", "w3")
BF16_ERROR = 1e-2  # bf16 operands, fp32 sums: 1e-3 to 1e-2
TARGET_OF_PEAK, TARGET_OVER_PEER = 0.70, 1.5
FP32_ERROR = 5e-6  # of float32 sums in another order
# The best peer; the others took 2 to 5 times as long, and a minute to build: benchmarks.moe_layer measures them too.
MEASURED = ("ours", "AutoEPMoELayer")


def row_counts(rows: int, experts: int) -> dict[str, list[int] | None]:
    """Return the cases: rows of each expert, by name; None: equal ones."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(experts, generator=generator)
    ragged = (shares / shares.sum() * rows).long()
    ragged[0] += rows - ragged.sum()
    empty = ragged.clone()
    empty[1], empty[0] = 0, empty[0] + empty[1]
    return {
        "equal": None,
        "ragged": ragged.tolist(),
        "one empty": empty.tolist(),
        "all empty": [0] * experts,
        "trailing rows": [rows // (2 * experts) + 3 * (e % 3) for e in range(experts)],
        "one row": [0] * (experts - 1) + [1],
    }


def reference(rows: Tensor, counts: list[int], w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """Compute the experts one by one, in the dtype of the arguments; rows of no expert give 0."""
    parts, outputs = rows.split([*counts, len(rows) - sum(counts)]), []
    for part, a, b, c in zip(parts[:-1], w1, w2, w3, strict=True):
        gate = torch.nn.functional.gelu(part @ a.mT, approximate="tanh")
        outputs.append((gate * (part @ c.mT)) @ b.mT)
    return torch.cat([*outputs, torch.zeros_like(parts[-1])])


def relative_error(found: Tensor | None, expected: Tensor | None) -> float:
    """Return ``|found - expected| / |expected|``; where the expected is 0, 0 if the found is, else infinity."""
    assert found is not None
    assert expected is not None
    found, expected = found.detach().double(), expected.detach().double()
    norm = float(expected.norm())
    if norm == 0:
        return 0.0 if bool((found == 0).all()) else float("inf")
    return float((found - expected).norm()) / norm


def errors_of(counts: list[int] | None, inputs: list[Tensor], grad: Tensor, device: str) -> dict[str, float]:
    """Return the relative errors of output and gradients against float64 on the same device."""
    rows = len(inputs[0])
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    counts_E = None if counts is None else torch.tensor(counts, device=device)
    poison = torch.full_like(inputs[0], float("nan"))  # what the allocator gives next was not 0
    del poison
    output = geglu_grouped(leaves[0], counts_E, *leaves[1:])
    output.backward(grad)
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected = reference(exact[0], counts or [rows // len(inputs[1])] * len(inputs[1]), *exact[1:])
    expected.backward(grad.double())
    found = [output, *(leaf.grad for leaf in leaves)]
    wanted = [expected, *(leaf.grad for leaf in exact)]
    return {name: relative_error(f, w) for name, f, w in zip(NAMES, found, wanted, strict=True)}


def check_grouped_products(setting: Setting, report: Report) -> None:
    """Step 2: errors of every case, weights in bf16 and in float32; time beside batched products."""
    rows, experts, d, F = setting.pick((8192, 8, 1024, 2816), (96, 4, 32, 48))
    generator = torch.Generator(setting.device).manual_seed(1)

    def random(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device) * std

    for weights in (torch.bfloat16, torch.float32):
        for name, counts in row_counts(rows, experts).items():
            with report.part(f"{name}, {weights}"):
                x, grad = random(rows, d).bfloat16(), random(rows, d).bfloat16()
                shapes = ((experts, F, d), (experts, d, F), (experts, F, d))
                stacks = [random(*shape, std=shape[-1] ** -0.5).bfloat16().to(weights) for shape in shapes]
                errors = errors_of(counts, [x, *stacks], grad, setting.device)
                worst = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
                report.below(f"{name}, {str(weights)[6:]} weights: {worst}", errors[worst], BF16_ERROR)
    with report.part("kernels"):
        check_kernels(setting, report)
    with report.part("time"):
        case = Case(*setting.pick((16384, 32, 1024, 2816), (128, 4, 32, 48)), torch.bfloat16, setting.kind)
        steps = {name: Step(build(make, case), make_input(case, name)) for name, make in LIMITS.items()}
        medians = interleaved_medians(steps, setting.pick(11, 1), case.device)
        flops = 18 * case.rows * case.d_model * case.d_ff
        report.value("forward+backward, ms", {name: taken * 1e3 for name, taken in medians.items()})
        report.value("TFLOP/s", {name: flops / taken / 1e12 for name, taken in medians.items()})
        fused = steps["fused"]
        report.value("profile of fused", profile(fused, setting.device))
        report.value("ms, fused alone", median_seconds(fused, case.device, setting.pick(11, 1)) * 1e3)


def check_kernels(setting: Setting, report: Report) -> None:
    """Compare the Triton kernels with float64 and with the torch operations that they replace, and time both."""
    groups, size, d, F, experts = setting.pick((8, 2048, 1024, 2816, 32), (2, 16, 32, 48, 4))
    runs = usable(torch.ones(1, device=setting.device))
    report.check("Triton kernels run", runs, setting.cuda, runs == setting.cuda)
    config = Case(groups * size, experts, d, F, torch.bfloat16, setting.kind).config
    generator = torch.Generator(setting.device).manual_seed(2)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device).to(dtype)

    x, y_grad, weight = random(groups * size, d), random(groups * size, d), random(experts, d, dtype=torch.float32)
    mask = torch.rand(groups, size, generator=generator, device=setting.device) > 0.1
    first, second, hidden_grad = (random(groups * size, F) for _ in range(3))
    # Not computed from the logits: sin() of logits of 32 turns their error of 4e-7 into 1.3e-5 of the gradient.
    product_grad = random(groups * size, experts, dtype=torch.float32)

    def routed(logits: Tensor) -> tuple[Routing, Tensor]:
        leaf = logits.detach().view(groups, size, experts).clone().requires_grad_()
        source = torch.Generator(setting.device).manual_seed(3)
        routing = route(leaf, mask, config, training=True, generator=source)
        (routing.gate_NGS.sum() + routing.load_balance_loss + routing.router_z_loss).backward()
        assert leaf.grad is not None
        return routing, leaf.grad

    def everything(x: Tensor, weight: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        product = router_product(*leaves)
        product.backward(product_grad)
        routing, logits_grad = routed(product if logits is None else logits)
        slot_NT, token_R = routing.buffer()
        source, gate = x.clone().requires_grad_(), routing.gate_NGS.detach().flatten(1).requires_grad_()
        sent = dispatch(source, slot_NT, token_R)
        rows = sent.detach().clone().requires_grad_()
        combined = combine(rows, gate, slot_NT, token_R)
        combined.backward(y_grad)
        sent.backward(sent.detach())
        grads, hidden = [torch.empty_like(first) for _ in range(2)], hidden_of(first, second)
        differentiate(first, second, hidden_grad.clone(), *grads)
        found = {"logits": product, "router x": leaves[0].grad, "router W": leaves[1].grad, "slots": slot_NT.double()}
        found |= {"tokens": token_R.double(), "gates": routing.gate_NGS, "logits' gradient": logits_grad}
        found |= {"balance": routing.load_balance_loss, "z": routing.router_z_loss, "sent": sent, "x": source.grad}
        found |= {"combined": combined, "rows": rows.grad, "gate": gate.grad, "hidden": hidden}
        found |= {"first": grads[0], "second": grads[1]}
        return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}

    with torch_only():
        logits = router_product(x, weight)
        expected = everything(x, weight, logits)
    found = everything(x, weight, logits)
    for name, value in expected.items():
        exact = name in ("slots", "tokens", "sent")
        summed = value.dtype == torch.float32 and name != "gate"  # torch multiplies in bf16 there
        limit = 1e-30 if exact else FP32_ERROR if summed else BF16_ERROR
        report.below(f"kernel, {name}", relative_error(found[name], value), limit)
    exact64 = {"logits": x.double() @ weight.double().t(), "router W": product_grad.double().t() @ x.double()}
    for name, exact_value in exact64.items():
        ways = {"kernel": found[name], "torch": expected[name]}
        errors = {way: relative_error(value, exact_value) for way, value in ways.items()}
        report.value(f"{name} against float64", errors)
    repeats = setting.pick(9, 1)
    times = {"kernels": median_seconds(lambda: everything(x, weight, logits), setting.kind, repeats) * 1e3}
    with torch_only():
        times["torch"] = median_seconds(lambda: everything(x, weight, logits), setting.kind, repeats) * 1e3
    report.value("all kernels once, ms", times)
    report.value("profile of all kernels", profile(lambda: everything(x, weight, logits), setting.device))


def runnable(case: Case, report: Report) -> list[str]:
    """Return the contenders that can run a step of the case; record why others cannot."""
    names = []
    for name in MEASURED:
        contender = CONTENDERS[name]
        with report.part(f"{name}, T = {case.tokens}"):
            try:
                Step(build(contender.make, case), make_input(case, name))()
            except SystemExit as missing:  # a package that only the comparison needs
                report.value(f"{name} is not measured", str(missing))
                continue
            names.append(name)
    return names


def measure_layer(setting: Setting, report: Report) -> None:
    """Step 9: ``benchmarks.moe_layer`` on this device, with the fraction of the measured GEMM peak."""
    sizes = SIZES[setting.pick("cuda", "quick")]
    ours: torch.nn.Module | None = None
    for tokens in sizes["tokens"][: setting.pick(None, 1)]:
        with report.part(f"T = {tokens}"):
            report.require(10)
            case = Case(tokens, sizes["experts"][0], sizes["d_model"], sizes["d_ff"], torch.bfloat16, setting.kind)
            cell = measure_cell(case, setting.pick(15, 1), runnable(case, report))
            report.value(f"T = {tokens}", summary(cell))
            report.value(f"cell, T = {tokens}", cell)
            ours = ours or build(CONTENDERS["ours"].make, case)  # its weights do not depend on the tokens
            step = Step(ours, make_input(case, "ours"))
            step()
            report.value(f"profile of ours, T = {tokens}", profile(step, setting.device))
            step.clear()
            if setting.toy:
                continue
            row, peer = cell["rows"]["ours"], best_peer(cell)
            report.check(
                f"T = {tokens}: of GEMM peak",
                row["of_peak"],
                f">= {TARGET_OF_PEAK}",
                row["of_peak"] >= TARGET_OF_PEAK,
            )
            if peer is not None:
                ratio = peer / row["seconds"]
                report.check(
                    f"T = {tokens}: best peer's time over ours",
                    ratio,
                    f">= {TARGET_OVER_PEER}",
                    ratio >= TARGET_OVER_PEER,
                )


def best_peer(cell: dict[str, Any]) -> float | None:
    """Return the least seconds of the peers; None if none ran."""
    return min((row["seconds"] for name, row in cell["rows"].items() if name not in ("ours", "limit")), default=None)


def summary(cell: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds by contender, and the share of the peak."""
    found = {name: row["seconds"] * 1e3 for name, row in cell["rows"].items()}
    return found | {f"{name} of peak": row["of_peak"] for name, row in cell["rows"].items() if "of_peak" in row}
