"""Every command that a document gives passes the checks that need no run; ``pytest -s`` shows how many there are."""

from pathlib import Path

import pytest

from common.project import ROOT
from tests.docs.commands import documents, find_commands, markdown_commands
from tests.docs.preflight import find_problems

GOOD = """
```bash
bash launch/quickstart.sh
cp configs/st_moe_l.yaml configs/my_run.yaml   # your own
deepspeed --num_gpus 8 train.py --config configs/my_run.yaml \\
  training.precision=bf16
python convert.py export runs/tiny --output exported/tiny
```
`python train.py --config configs/tiny.yaml --resume parallel.expert_parallel_size=1`, and
`touch runs/st-moe-l/stop`; `runs/tiny`, `git` and `loss = a b` are no commands; `train.py --is-done` is a mention.
"""


def check_page(text: str, folder: Path) -> tuple[int, list[str]]:
    """How many commands a page has, and what is wrong with them."""
    page, sandbox = folder / "page.md", folder / "sandbox"
    page.write_text(text, encoding="utf-8")
    sandbox.mkdir()
    commands = find_commands(folder, page)
    return len(commands), find_problems(ROOT, sandbox, commands, in_order=True)


def test_every_documented_command_passes_its_preflight(tmp_path: Path):
    problems, counts = [], {}
    for file in documents(ROOT):
        name = str(file.relative_to(ROOT))
        if commands := find_commands(ROOT, file):
            counts[name] = len(commands)
            sandbox = tmp_path / str(len(counts))
            sandbox.mkdir()
            problems += find_problems(ROOT, sandbox, commands, in_order=file.suffix == ".md")
    print(f"\n{sum(counts.values())} commands of {len(counts)} files checked: {counts}")
    assert not problems, "\n" + "\n".join(problems)
    assert {"README.md", "CONTRIBUTING.md", "docs/cluster.md", "docs/faults.md", "docs/stability.md"} <= set(counts)
    assert {
        "train.py",
        "convert.py",
        "data/prepare.py",
        "studies/z_loss_sweep.py",
        "launch/test.sh",
        "configs/small.yaml",
    } <= set(counts)


def test_good_commands_are_found_and_pass(tmp_path: Path):
    assert check_page(GOOD, tmp_path) == (7, [])


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("deepspeed --num_gpus 8 train.py --config configs/tiny.yaml", "8 ranks: training.global_batch_size = 16"),
        ("deepspeed --num_gpus 3 train.py --config configs/small.yaml", "on 3 ranks"),
        ("deepspeed train.py --config configs/tiny.yaml", "on 1 ranks: parallel.expert_parallel_size = 2"),
        ("python train.py --config configs/tiny.yaml", "parallel.expert_parallel_size = 2"),
        ("deepspeed --num_gpus 2 train.py --config configs/tiny.yaml training.step=1", "unknown key"),
        ("deepspeed --num_gpus 2 train.py --config configs/tny.yaml", "no such file"),
        ("deepspeed --num_gpus 2 train.py --config configs/tiny.yaml --again", "unrecognized arguments"),
        ("deepspeed --num_gpus 2 train.py --config configs/tiny.yaml …", "placeholder"),
        ("deepspeed --frobnicate 2 train.py --config configs/tiny.yaml", "unrecognized arguments: --frobnicate"),
        ("train.py --config configs/small.yaml", "cannot be checked: train.py"),
        ("bash launch/run_until_done.sh --retries 2 python train.py --config configs/small.yaml", "unknown option"),
        ("bash launch/run_until_done.sh deepspeed --num_gpus 4 train.py --config configs/tiny.yaml", "on 4 ranks"),
        ("bash launch/multi_node.sh launch/hostfile.example --config configs/tiny.yaml", "on 16 ranks"),
        ("bash launch/multi_node.sh launch/hosts --config configs/small.yaml", "launch/hosts: no such file"),
        ("bash launch/quick.sh", "launch/quick.sh: no such file"),
        ("bash launch/quickstart.sh training.micro_batch_size=16", "world size = 16 x 2"),
        ("bash launch/test.sh tests/nowhere", "no such file"),
        ("python -m data.prepare --source wikipedia", "8000 pieces and 100 sentinels do not fit"),
        ("python -m data.prepare --source hub", "--hub-dataset is needed"),
        ("python -m data.prepar", "no such program"),
        ("python -m studies.stability --config configs/small.yaml --ranks 3", "world size = 16 x 3"),
        ("python -m studies.stability --variants baseline nothing", "no such variant"),
        ("python evaluate.py runs/never --tasks sst2", "no config and no command of this page"),
        ("python evaluate.py runs/tiny --tasks sst3", "did you mean sst2"),
        ("python evaluate.py runs/tiny --tasks squad --split test", "task squad has no split test"),
        ("deepspeed --num_gpus 2 evaluate.py runs/tiny --taks sst2", "--tasks"),
        (
            "python plan.py --config configs/tiny.yaml --gpus 3",
            "parallel.expert_parallel_size = 2 does not divide --gpus 3",
        ),
        ("python plan.py --config configs/tiny.yaml --gpus 2 --card h100", "did you mean h100-"),
        ("python plan.py --config configs/tiny.yaml --gpus 2 --mfu-from runs/never", "no config and no command"),
        ("python -m studies.routing runs/never", "no config and no command of this page"),
        ("python -m studies.routing exported/tiny", "an export needs --config"),
        ("deepspeed --num_gpus 2 --module studies.routing runs/tiny --exampels 9", "did you mean --examples"),
        ("python -m benchmarks.data_pipeline --frobnicate", "unrecognized arguments"),
        ("python convert.py export runs/never --output exported/never", "no config and no command of this page"),
        ("touch runs/never/stop", "no config and no command of this page"),
        ("docker build -t a . && docker run --gpus all a deepspeed train.py --config configs/tiny.yaml", "on 1 ranks"),
        ("docker build -t a . && docker run a python -m pytest tests", "tests is not in the image"),
        ("docker run --gpus all st-moe deepspeed train.py --config configs/small.yaml", "builds the image st-moe"),
        ("pip install -r requirements-none.txt", "no such file"),
        ("cat README.md | wc", "cannot be checked"),
        ("frobnicate --all", "cannot be checked: frobnicate"),
    ],
)
def test_a_broken_command_is_found(command: str, problem: str, tmp_path: Path):
    count, found = check_page(f"# A page\n\n```bash\n# what it does\n{command}\n```\n", tmp_path)
    assert count == 1
    assert len(found) == 1
    assert found[0].startswith("page.md:5: ")
    assert problem in found[0]


def test_a_run_is_not_started_twice(tmp_path: Path):
    train = "deepspeed --num_gpus 2 train.py --config configs/tiny.yaml"
    text = f"`bash launch/quickstart.sh`\n\n```bash\n{train}\n{train} training.name=b\n{train} --resume\n```\n"
    count, found = check_page(text, tmp_path)
    assert (count, len(found)) == (4, 1)
    assert found[0].startswith("page.md:4: ")


def test_an_unknown_option_in_a_sentence_is_found(tmp_path: Path):
    count, found = check_page("Start it with `train.py --resumed`.", tmp_path)
    assert (count, len(found)) == (1, 1)
    assert "train.py knows no --resumed" in found[0]


def test_commands_are_found_in_every_kind_of_block(tmp_path: Path):
    indented = "A\n\n    python -m pytest tests/a   # why\n    not a command\n\n"
    text = f"{indented}```\npython -m pytest tests/b\nits output\n```\n"
    count, found = check_page(text, tmp_path)
    assert count == 2
    assert [problem.partition(": ")[0] for problem in found] == ["page.md:3", "page.md:7"]


def test_inline_commands_are_told_from_other_code():
    text = "`git` is a name, `python train.py\n--help` is not; `INDEX=x pip install y`, ``bash a.sh``; `a = b`"
    found = [command.text for command in markdown_commands("page.md", text)]
    assert found == ["python train.py --help", "INDEX=x pip install y", "bash a.sh"]
