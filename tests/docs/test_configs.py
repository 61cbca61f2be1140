"""The first line of every config names the numbers of ranks that it fits as it stands, and it fits exactly these."""

import re
from pathlib import Path

import pytest

from common.project import ROOT
from training.config.checks import check_all_to_all, check_layout
from training.config.run import load_config

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RANKS = tuple(2**n for n in range(12))
GPUS_OF_A_HOST = 8


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_fits_the_ranks_that_its_first_line_names(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    match = re.match(r"# Ranks: ([\d, or]+)\. ", file.read_text(encoding="utf-8"))
    assert match, f"{file.name} begins with '# Ranks: N, N or N. What it is'"
    named = [int(number) for number in re.findall(r"\d+", match[1])]
    config = load_config(file)
    fits = []
    for ranks in RANKS:
        try:
            check_layout(config, ranks)
            check_all_to_all(config, min(ranks, GPUS_OF_A_HOST))
        except ValueError:
            continue
        if config.data.num_streams % ranks == 0:
            fits.append(ranks)
    assert fits == named


@pytest.mark.parametrize(
    ("ranks", "override"),
    [
        (1, "parallel.expert_parallel_size=1"),
        (4, "training.micro_batch_size=4"),
        (8, "training.micro_batch_size=2"),
    ],
)
def test_tiny_fits_other_ranks_as_its_comment_says(ranks: int, override: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "tiny.yaml", [override])
    check_layout(config, ranks)
    check_all_to_all(config, ranks)


def test_one_config_starts_on_one_two_four_and_eight_gpus():
    text = (ROOT / "configs" / "small.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Ranks: 1, 2, 4, 8 or 16. ")
