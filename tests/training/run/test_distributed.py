"""Each rank takes a GPU of its own, and gloo the interface that reaches the other hosts."""

import types

import pytest
import torch
from torch.distributed import HashStore

from training.config.errors import ConfigError
from training.run import distributed
from training.run.process import Process


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """What a process sees: the number of GPUs, and the identity of the first."""
    seen = types.SimpleNamespace(count=1, uuid="GPU-0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen.count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid=seen.uuid))
    return seen


def test_a_rank_takes_the_gpu_of_its_local_rank_or_the_only_one_that_it_sees(gpus: types.SimpleNamespace):
    store = HashStore()
    ranks = [Process(rank, rank, 2, 2) for rank in range(2)]
    gpus.count = 2
    assert [distributed._device_index(process, store) for process in ranks] == [0, 1]
    gpus.count = 1  # as srun --gpus-per-task=1 shows them: another one to each task, all under the number 0
    for process in ranks:
        gpus.uuid = f"GPU-{process.rank}"
        assert distributed._device_index(process, store) == 0


def test_more_ranks_than_gpus_are_refused_in_one_line(gpus: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    store = HashStore()
    gpus.count = 2
    with pytest.raises(ConfigError, match=r"local rank 2 sees 2 GPUs \(CUDA_VISIBLE_DEVICES = 0,1\): start one rank"):
        distributed._device_index(Process(2, 2, 3, 3), store)
    gpus.count = 1
    assert distributed._device_index(Process(0, 0, 2, 2), store) == 0
    with pytest.raises(ConfigError, match="local rank 1 sees one GPU, which another rank has"):
        distributed._device_index(Process(1, 1, 2, 2), store)


def test_gloo_takes_the_interface_that_reaches_the_other_hosts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    addresses = {"lo": "127.0.0.1", "docker0": "172.17.0.1", "eth0": "10.0.0.1"}
    interfaces = {name: [types.SimpleNamespace(address=address)] for name, address in addresses.items()}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: interfaces)
    # The first host's own name is one of its loopback; the other host is reached through eth0.
    routes = {"node-0": "127.0.1.1", "10.0.0.2": "10.0.0.1"}
    monkeypatch.setattr(distributed, "_source_address", routes.__getitem__)
    store = HashStore()
    store.set("start/address/1", "10.0.0.2")
    assert distributed._interface(Process(0, 0, 2, 1), store) == "eth0"
    # Two "hosts" that are one machine.
    routes["node-0"] = "127.0.0.1"
    store.set("start/address/1", "127.0.0.1")
    assert distributed._interface(Process(0, 0, 2, 1), store) == "lo"
