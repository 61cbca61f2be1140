"""Rows from a server that answers as the Hub, with ``datasets`` itself, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

from common.project import ROOT
from tests.support.faulty_server import serve

REPOSITORY = """---
configs:
- config_name: winogrande_xl
  data_files:
  - {split: train, path: winogrande_xl/train-*}
  - {split: validation, path: winogrande_xl/validation-*}
---
"""
LOAD = """
import json
from data import tasks
rows = tasks.get("winogrande").load("validation")
found = [len(rows), tasks.get("winogrande").examples(rows), dict(rows[0])]
for split in ("test", "dev"):
    try:
        tasks.get("winogrande").load(split)
    except ValueError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_rows_and_a_split_that_the_hub_lacks(tmp_path: Path) -> None:
    rows = [{"sentence": f"_ won {i}.", "option1": "Ann", "option2": "Bob", "answer": str(1 + i % 2)} for i in range(3)]
    folder = tmp_path / "hub/allenai/winogrande/winogrande_xl"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    (folder.parent / "README.md").write_text(REPOSITORY)
    with serve(tmp_path / "hub") as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", LOAD]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    count, examples, first, lacking, unknown = json.loads(result.stdout)
    assert count == 3 and first == rows[0]
    inputs = [f"winogrande sentence: _ won {i}. choices: (A) Ann (B) Bob" for i in range(3)]
    assert examples == [[text, answer] for text, answer in zip(inputs, ("Ann", "Bob", "Ann"), strict=True)]
    assert lacking.startswith(
        "task winogrande: allenai/winogrande (winogrande_xl, test) is not on the Hugging Face Hub"
    )
    assert unknown == "task winogrande has no split 'dev': use train, validation, test"
