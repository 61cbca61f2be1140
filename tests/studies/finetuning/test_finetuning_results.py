"""Tables, picture and document from rows: our figures, and the paper's beside them."""

from pathlib import Path
from typing import Any

import pytest

from studies.finetuning import study
from studies.finetuning.paper import BY_BATCH, BY_RATE, CAPACITY
from studies.finetuning.pictures import plot_grid
from studies.finetuning.sources import DENSE, SPARSE, pretrained
from studies.finetuning.tables import Results, format_tables, means_over
from studies.finetuning.trials import Trial, trials_of
from studies.finetuning.variants import Variant, grid_of, variants_of
from studies.results.rows import RUN, append_row

Study = tuple[list[Trial], dict[str, Variant]]


@pytest.fixture(scope="module")
def planned(twins: dict[str, Path], finetuning: str) -> Study:
    models = {kind: pretrained(kind, run, finetuning, []) for kind, run in twins.items()}
    variants = variants_of(list(models.values()), grid_of(models[SPARSE].config, (), (), "examples", 1))
    asked = study.Asked(("sst2", "wiki_topic"), "validation", None, "generated", "tasks")
    return trials_of(models, variants, asked.identity(), 1)[0], variants


def row_of(trial: Trial, score: float | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    training = trial.config.training
    of_task = {"score": score, "generated": {"accuracy": score}, "likeliest": {}, "examples": 500,
               "baselines": {"majority": 50.0, "bag_of_words": 80.5}}  # fmt: skip
    return {
        "kind": RUN, "key": trial.key, "seed": seed, "variants": list(trial.names), "status": "stable", "reason": "",
        "diverged_at": None, "steps": training.steps, "batch": training.global_batch_size, "score": score,
        "tasks": {} if score is None else {"sst2": of_task}, "dropped_train": 0.125, "dropped_eval": 0.0,
        "validation": {} if score is None else {"cross_entropy": 1 - score / 100}, "training_flops": 1e9,
        "parameters_total": 2000, "parameters_trained": 1000, "optimizer_bytes": 400, "step_seconds": 0.5,
        "processor_seconds": 0.4, "peak_memory_bytes": 5_000_000, "device": "a processor", "ranks": 1, "jobs": 2,
        "git_commit": "0" * 40, "date": "2026-01-01 00:00", "load_average": 1.0,
    } | more  # fmt: skip


def grid_rows(trials: list[Trial]) -> list[dict[str, Any]]:
    """Sparse: best at small batches and high rates; dense: the other way around."""
    rows = []
    for trial in trials:
        if "_lr" in trial.name:
            kind, batch, rate = trial.name.split("_")
            sign = 1 if kind == SPARSE else -1
            places = (8, 32, 128).index(int(batch[1:])), (0.01, 0.005, 0.001).index(float(rate[2:]))
            rows.append(row_of(trial, 80.0 - sign * (3 * places[0] + places[1])))
    return rows


def test_means_are_those_of_the_grid_with_the_papers_beside(planned: Study, tmp_path: Path):
    trials, variants = planned
    rows = grid_rows(trials)
    results = Results(trials, variants, rows)
    assert len(rows) == 18
    assert {b: mean.value for b, mean in means_over(results, SPARSE, 0).items()} == {8: 79.0, 32: 76.0, 128: 73.0}
    assert {r: mean.value for r, mean in means_over(results, DENSE, 1).items()} == {
        0.01: 83.0,
        0.005: 84.0,
        0.001: 85.0,
    }
    tables = format_tables(results)
    assert "Parameters that are trained" not in tables  # of which the base configuration alone is there
    assert "| 8 | 0.01 | 8 | 80.0 | 80.0 | 0.200 | 0.200 |" in tables
    assert "| 128 | 0.001 | 1 | 72.0 | 88.0 | 0.280 | 0.120 |" in tables
    assert "| 8 | 79.0 ± 0.6 | 81.0 ± 0.6 | -2.0 | 65,536 | 85.5 | 84.0 |" in tables
    assert "| 0.001 | 75.0 ± 1.7 | 85.0 ± 1.7 | -10.0 | 0.0001 | 84.9 | 84.7 |" in tables
    assert "| majority | 50.0 |" in tables and "| bag of words | 80.5 |" in tables
    assert plot_grid(results, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    partial = Results(trials, variants, [row for row in rows if row["batch"] != 8 or row["score"] != 80.0])
    assert list(means_over(partial, SPARSE, 0)) == [32, 128]  # a mean of fewer settings is none
    assert not plot_grid(Results(trials, variants, []), tmp_path / "none.png")


def test_every_table_has_our_figures_and_what_the_paper_says(planned: Study):
    trials, variants = planned
    named = {name: trial for trial in trials for name in trial.names}
    rows = [row_of(named["sparse_all"], 60.0, seed) for seed in (0, 1)]
    rows += [row_of(named["sparse_moe"], 50.0 + seed, seed, parameters_trained=300) for seed in (0, 1)]
    rows += [row_of(named["sparse_cf0.75_unbalanced"], 55.0), row_of(named["sparse_sentinels"], 61.0)]
    rows += [row_of(named["sparse_dropout0.3_expert0.4"], 40.0), row_of(named["dense_scratch"], 30.0)]
    rows.append(row_of(named["dense_slots"], None, status="diverged", diverged_at=3, reason="not finite"))
    tables = format_tables(Results(trials, variants, rows))
    for line in (
        "| `all` | 1,000 | 400 | 60.0 ± 0.0 | - | 0.400 ± 0.000 | - | as `non_moe` |",
        "| `moe` | 300 | 400 | 50.5 ± 0.5 | -9.5 ± 0.5 | 0.495 ± 0.005 | +0.095 ± 0.005 | far worse |",
        "| 0.75 | 2 | no | 12.5% | 0.0% | 55.0 | 0.450 | 15.6% | 85.7 |",
        "| 0.3 | - | 40.0 |",  # no run with expert dropout 0
        "| yes | 61.0 | +1.0 | 0.390 | learns faster |",
        "| dense | random weights | 30.0 | - | 0.700 | - | - |",
        "- `dense_b8_lr0.01`, seed 0, ended at step 3: not finite",
    ):
        assert line in tables, tables


def test_the_papers_figures_are_those_of_its_section(planned: Study):
    """Copied twice, from the paper's text: a slip in one of the two shows."""
    assert [figures[DENSE] for figures in BY_BATCH.values()] == [84.0, 84.6, 84.5]
    assert [figures[SPARSE] for figures in BY_RATE.values()] == [85.9, 85.3, 84.9]
    text = (Path(study.__file__).parents[2] / "docs" / "finetuning_study.md").read_text()
    said = text.partition("## What the paper found")[2].partition("## ")[0]
    for figures in (*BY_BATCH.values(), *BY_RATE.values()):
        assert all(f"{value}" in said for value in figures.values())
    for dropped in CAPACITY.values():
        assert f"{dropped.score}" in said
        assert not dropped.share or f"{100 * dropped.share:.1f} %" in said


def test_the_document_is_written_from_the_rows(
    twins: dict[str, Path], finetuning: str, planned: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    document, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    words = ["--sparse", str(twins[SPARSE]), "--dense", str(twins[DENSE]), "--config", finetuning, "--steps", "8"]
    start = ["study", *words, "--rows", str(rows), "--document", str(document), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*start, "--report"])
    for row in grid_rows(planned[0]):
        append_row(rows, row)
    document.write_text("# Title\n")
    begin = f"<!-- finetuning: {' '.join(words)} -->"
    assert study.main() == 2
    assert f"has no section for it: add the lines {begin} and <!-- finetuning ends -->" in capsys.readouterr().err
    document.write_text(f"# Title\n\n{begin}\nold\n<!-- finetuning ends -->\n\nthe rest\n")
    assert study.main() == 0
    text = document.read_text()
    assert text.startswith(f"# Title\n\n{begin}\n") and text.endswith("<!-- finetuning ends -->\n\nthe rest\n")
    assert "| 8 | 79.0 ± 0.6 | 81.0 ± 0.6 | -2.0 |" in text and "18 runs of 1 to 8 steps" in text
    assert "![score over batch size and learning rate, sparse and dense](finetune-8.png)" in text
    assert (tmp_path / "finetune-8.png").is_file() and not (tmp_path / "out").exists()
