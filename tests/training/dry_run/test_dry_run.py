"""A dry run of one rank, against a real run, against the plan, and against groups worked by hand."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support.launch import train
from tests.support.small import TWO_BLOCKS, small_config
from training.run.folder import RunFolder


def dry_run(file: Path, world_size: int, rank: int, *overrides: str) -> dict[str, Any]:
    """Return what ``train.py --dry-run --json`` prints."""
    result = train(file, "--dry-run", "--world-size", str(world_size), "--rank", str(rank), "--json", *overrides)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.distributed
def test_files_of_a_checkpoint_are_those_of_a_real_run(corpus: dict[str, Any], tmp_path: Path):
    training = {"steps": 1, "eval_every": 1, "save_every": 1, "eval_examples": 8, "micro_batch_size": 1,
                "activation_checkpointing": True}  # fmt: skip
    config = small_config(
        tmp_path, zero_stage=3, data=corpus, model=TWO_BLOCKS, training=training, parallel={"expert_parallel_size": 2}
    )
    file = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config.model_dump()), file)
    dry = [dry_run(file, 2, rank) for rank in range(2)]
    assert not RunFolder(config.run_dir).path.exists()
    real = train(file, ranks=2)
    assert real.returncode == 0, real.stderr
    folder = RunFolder(config.run_dir).checkpoints / "step_00000001"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert dry[0]["checkpoint"]["folder"] == str(folder)
    for row in dry:
        own = row["checkpoint"]["own_bytes"]
        assert own == {name: files[name] for name in own}
    own = [name for row in dry for name in row["checkpoint"]["own_bytes"]]
    assert sorted(files) == sorted([*own, *dry[0]["checkpoint"]["added"]])
    state = json.loads((folder / "trainer_state.json").read_text())
    assert sorted(map(int, state["data"]["streams"])) == sorted(s for row in dry for s in row["text"]["streams"])
    assert [row["experts"] for row in dry] == [
        {f"{stack}.blocks.1.feed_forward": held for stack in ("encoder", "decoder")} for held in ([0, 2], [2, 4])
    ]
    assert [row["groups"]["expert_parallel"] for row in dry] == [[0, 1], [0, 1]]
    assert [row["groups"]["expert_data_parallel"] for row in dry] == [[0], [1]]


def keys(row: Any) -> Iterator[str]:
    """Yield the keys of nested dicts and lists; files' names are keys, too."""
    if isinstance(row, dict):
        yield from row
    for value in row.values() if isinstance(row, dict) else row if isinstance(row, list) else ():
        yield from keys(value)


def test_a_large_cluster(tmp_path: Path):
    """Rank 77 of 512 with EP 4 and 8 GPUs per node, by hand: node 9, group 76-79, experts of its place 1 in it."""
    config = small_config(
        tmp_path,
        data={"train_files": "/none/*.gz", "vocabulary": "/none", "num_streams": 1024, "inputs_length": 32},
        model=TWO_BLOCKS | {"num_experts": 8},
        training={
            "global_batch_size": 2048,
            "micro_batch_size": 2,
            "eval_examples": 1024,
            "precision": "bf16_autocast",
        },
        parallel={"expert_parallel_size": 4},
        zero_stage=2,
    )
    file = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config.model_dump()), file)
    figures = tmp_path / "found.json"
    result = train(file, "--dry-run", "--world-size", "512", "--rank", "77", "--json", str(figures))
    assert (result.returncode, result.stderr) == (0, f"wrote {figures}\n")
    found = json.loads(figures.read_text())
    # What begins, the table, and the plan's warnings as ``plan.py`` prints them.
    parts = re.fullmatch(r"(.*?\n)(dry run  .*?)\n\n(.*)", result.stdout, re.DOTALL)
    assert parts is not None
    begun, table, warnings = parts.groups()
    assert begun.splitlines()[:2] == ["importing torch and DeepSpeed", "building rank 77 of 512"]
    assert warnings.splitlines() == [f"warning: {line}" for line in found["plan"]["warnings"]]
    for unit in ("bytes", "seconds"):
        assert not [key for key in keys(found | {"config": {}}) if unit in key and not key.endswith(unit)]
    assert found["checked"] == {
        "to_the_byte": ["parameters", "weights", "master", "optimizer", "gradients", "traffic"], "estimated": [],
    }  # fmt: skip
    assert "gradients, traffic are those of the plan, to the byte\n" in table
    assert found["rank"] == {"rank": 77, "node": 9, "gpu": 5}
    assert found["groups"] == {
        "data_parallel": list(range(512)),
        "expert_parallel": [76, 77, 78, 79],
        "expert_data_parallel": list(range(1, 512, 4)),
    }
    assert set(map(tuple, found["experts"].values())) == {(2, 4)}
    assert found["text"]["streams"] == [77, 589]
    assert found["checkpoint"]["own_bytes"].keys() == {"rank-00077-of-00512.safetensors", "optimizer-00077.safetensors"}
    # 64 tokens: one group, int(64 * 1.25 / 8) = 10 slots for each of 8 experts, rows of 32 bf16 numbers.
    encoder = {"sequences": 2, "length": 32, "groups": 1, "size": 64, "capacity": 10, "rows": 80}
    assert found["micro_batch"]["encoder"] == encoder
    assert {"phase": "forward", "calls": 2, "bytes": 80 * 32 * 2} in found["all_to_all_bytes"]
    # 2 micro-batches; each reduces all gradients: ZeRO 2.
    reduced = {(one["kind"], one["ranks"]): one["step_bytes"] for one in found["traffic"]}
    experts = 2 * (2 * 3 * 32 * 48)  # 2 layers, 2 experts each
    assert reduced["all_reduce", 128] >= 2 * experts * 4
    assert not (tmp_path / "runs").exists()
