"""How little a step of Adafactor asks of a device: st_moe_l on 8 and on 512 ranks, counted on the meta device."""

import pytest
import torch

from optim.parameter import ParameterSpec
from optim.partition_state import DEVICE_BLOCK
from tests.support.launches import Launches, count, partitions, pretended_ranks, share, st_moe_l_specs

EXPERT_PARALLEL_SIZE = 8
# ZeRO stage, ranks, ranks that are counted, most operations.
CASES = [(1, 8, (0, 3, 7), 400), (1, 512, (0, 100, 301, 511), 150), (3, 8, (2,), 400), (3, 512, (9, 511), 600)]


@pytest.fixture(scope="module")
def specs() -> list[ParameterSpec]:
    return st_moe_l_specs(EXPERT_PARALLEL_SIZE)


@pytest.mark.parametrize(("stage", "ranks", "counted", "most"), CASES)
def test_operations_of_a_step(specs: list[ParameterSpec], stage: int, ranks: int, counted: tuple[int, ...], most: int):
    for rank in counted:
        with pretended_ranks(ranks, rank):
            launches = count(list(partitions(specs, stage, ranks, rank, EXPERT_PARALLEL_SIZE)))
        assert 50 < launches.total <= most, launches.operations
        assert not launches.on_empty
        assert not launches.host_reads
        groups_of_several = 1 if ranks == EXPERT_PARALLEL_SIZE else 2
        assert launches.collectives == {"allreduce_": 2 * groups_of_several}
        assert launches.peak_bytes < 1.2 * 4 * DEVICE_BLOCK


def test_empty_segments_cost_nothing(specs: list[ParameterSpec]):
    """The second of a thousand ranks holds elements of one matrix, however many parameters there are."""
    matrix = ParameterSpec("matrix", (4096, 4096))
    few, many = ([matrix, *(ParameterSpec(f"v{i}", (64,)) for i in range(n))] for n in (1, 300))
    with pretended_ranks(1000, 1):
        totals = [count([share(of, 1, 1000, 1)]).total for of in (few, many)]
        assert totals[0] == totals[1]
        assert not count([share(many, 1, 1000, 999)], beta1=0.9).on_empty  # the last vectors, and padding


def test_the_counter_sees_what_it_forbids():
    with Launches() as launches:
        values = torch.ones(3)
        values[:0].add_(1)
        float(values.sum())
        torch._foreach_mul_([values, values[:2]], [values, torch.ones(())])
    assert launches.on_empty == ["add_"]
    assert launches.host_reads == ["_local_scalar_dense"]
    assert launches.operations["_foreach_mul_"] == 2
    assert launches.peak_bytes == 3 * 4 + 4, "what is freed does not count"
