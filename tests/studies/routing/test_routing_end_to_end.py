"""``python -m studies.routing`` on a run and its export, on one and two ranks, and the mistakes of users."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.strict_json import finite_or_null, to_json
from data.config import DataConfig
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer
from model.st_moe import StMoeForConditionalGeneration
from studies.routing.__main__ import OF_COLLECTION, check_sparse, parse_arguments, read_traces, texts
from studies.routing.analysis import analyze
from studies.routing.trace import FILE, load_trace
from tests.support.launch import python
from tests.support.trained import trained_run
from training.config.errors import ConfigError
from training.config.run import load_config
from training.export.export import export
from training.export.held_out import held_out_batches
from training.export.trained import find_trained

STUDY = ("-m", "studies.routing")


@pytest.fixture(scope="module")
def trained(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of step 3 and 6; two blocks, one of them sparse, in each stack."""
    folder = tmp_path_factory.mktemp("trained")
    training = {"steps": 6, "eval_every": 6, "eval_examples": 16, "save_every": 3}
    return trained_run(folder, data=corpus, model={"num_layers": 2, "sparse_step": 2}, training=training)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    folder = trained.parent / "exported"
    export(trained, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def results(trained: Path) -> Path:
    """What the study writes on one rank."""
    out = trained.parent / "one"
    options = ("--against", "3", "--examples", "20", "--permutations", "2", "--out", str(out))
    done = python(*STUDY, str(trained), *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert "Sentinels, mean over layers: decoder" in done.stdout
    return out


def test_the_experts_are_those_of_the_exported_model(results: Path, trained: Path, exported: Path):
    """The routers' inputs, seen by hooks of torch in Hugging Face's model, give experts, gates and entropies."""
    trace, config = load_trace(results / FILE), load_config(trained / "config.yaml")
    assert trace.examples == 20
    tokenizer = Tokenizer(config.data.vocabulary)
    batches = validation_batches(config.data, tokenizer, rank=0, world_size=1, batch_size=4, num_batches=5)
    model = StMoeForConditionalGeneration.from_pretrained(exported).eval()
    seen: dict[str, list[torch.Tensor]] = {"encoder_1": [], "decoder_1": []}
    for name, module in model.named_modules():
        if name.endswith("feed_forward.router"):
            layer = f"{name.split('.')[0]}_1"
            module.register_forward_hook(lambda _m, _i, logits, layer=layer: seen[layer].append(logits.detach()))
    tokens: dict[str, list[int]] = {"encoder": [], "decoder": []}
    reals: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}
    for batch in batches:
        inputs, labels = torch.from_numpy(batch["input_ids"]), torch.from_numpy(batch["labels"])
        with torch.no_grad():
            model(input_ids=inputs, labels=labels)
        reals["encoder"].append(inputs != 0)
        reals["decoder"].append(labels != -100)
        tokens["encoder"] += inputs[inputs != 0].tolist()
        for row in labels:
            tokens["decoder"] += [0, *row[row != -100].tolist()[:-1]]
    for layer, logits in seen.items():
        stack, routed = layer.partition("_")[0], trace.layers[layer]
        assert trace.stacks[stack].token_T.tolist() == tokens[stack]
        kept = torch.cat(
            [part.view(*real.shape, -1)[real] for part, real in zip(logits, reals[stack], strict=True)]
        ).double().numpy()  # fmt: skip
        order = np.argsort(-kept, axis=1, kind="stable")[:, :2]
        assert np.array_equal(routed.expert_TN, order)
        exp = np.exp(kept - kept.max(1, keepdims=True))
        p = exp / exp.sum(1, keepdims=True)
        assert routed.entropy_T == pytest.approx(-(p * np.log(p)).sum(1), abs=1e-5)
        assert routed.logsumexp_T == pytest.approx(np.log(np.exp(kept).sum(1)), abs=1e-5)
        chosen = np.take_along_axis(p, order, axis=1)
        assert routed.gate_TN == pytest.approx(chosen / chosen.sum(1, keepdims=True), abs=1e-5)
        assert routed.kept_TN.all()
        weights = model.get_parameter(f"{stack}.blocks.1.feed_forward.experts.w1").detach()
        assert len(weights) == trace.num_experts
        router = model.get_parameter(f"{stack}.blocks.1.feed_forward.router.weight").detach().numpy()
        norm = np.linalg.norm(router, axis=1)
        assert trace.similarity[layer].router_EE == pytest.approx(router @ router.T / np.outer(norm, norm), abs=1e-5)
    assert trace.stacks["encoder"].position_T[0] == 0
    assert np.array_equal(np.unique(trace.stacks["decoder"].example_T), np.arange(20))
    found = json.loads((results / "statistics.json").read_text())
    assert 0 < found["stability"]["layers"]["encoder_1"]["all"]["same"]["value"] <= 1
    assert "step 3" in found["stability"]["against"]


@pytest.mark.distributed
def test_two_ranks_that_share_the_experts_give_the_same_results(results: Path, trained: Path):
    """Also an odd number of batches, five, and with the capacity and the draws of training."""
    out = trained.parent / "two"
    options = ("--against", "3", "--examples", "20", "--permutations", "2", "--out", str(out))
    done = python(*STUDY, str(trained), *options, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Sentinels, mean over layers") == 1
    for name in (FILE, "trace_against.safetensors"):
        one, two = load_trace(results / name), load_trace(out / name)
        for layer, routed in one.layers.items():
            assert np.array_equal(routed.expert_TN, two.layers[layer].expert_TN)
            assert np.array_equal(routed.kept_TN, two.layers[layer].kept_TN)
            assert np.allclose(routed.gate_TN, two.layers[layer].gate_TN, atol=1e-5)
            assert np.allclose(routed.entropy_T, two.layers[layer].entropy_T, atol=1e-5)
        for stack, tokens in one.stacks.items():
            assert np.array_equal(tokens.token_T, two.stacks[stack].token_T)
            assert np.array_equal(tokens.example_T, two.stacks[stack].example_T)
    assert (results / "tables.md").read_text() == (out / "tables.md").read_text()


def test_an_export_of_several_texts_and_a_trace_analyzed_again(
    trained: Path, exported: Path, corpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    text = trained.parent / "news.txt"
    text.write_text("kada lone mipo. " * 400 + "\n")
    out = trained.parent / "texts"
    config = ("--config", str(trained / "config.yaml"))
    domains = ("--data", f"own={corpus['validation_files']}", "--data", str(text))
    done = python(
        *STUDY, str(exported), *config, *domains, "--examples", "16", "--permutations", "2", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trace = load_trace(out / FILE)
    assert (trace.domains, trace.step, np.bincount(trace.domain_X).tolist()) == (["own", "news"], None, [8, 8])
    assert trace.domain_X[:8].tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    found = analyze(trace, None, permutations=2, seed=0)
    assert (out / "statistics.json").read_text() == to_json(finite_or_null(found), indent=1) + "\n"
    monkeypatch.setattr("sys.argv", ["study", str(out)])
    again, other = read_traces(parse_arguments())
    assert (again.source, other) == (str(exported), None)


def test_mistakes_are_one_line_with_exit_code_2(trained: Path, tmp_path: Path):
    for arguments, words in (
        ((str(tmp_path / "none"),), "no such folder"),
        ((str(trained), "--data", "law=nowhere/*.txt"), "--data law = 'nowhere/*.txt' matches no file"),
    ):
        done = python(*STUDY, *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_models_that_cannot_be_traced(trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="has no checkpoint of step 5: name one of 3, 6"):
        find_trained(trained, 5)
    with pytest.raises(ConfigError, match="is an export, which has one set of weights"):
        find_trained(exported, 5)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        find_trained(tmp_path / "empty")
    run, given = find_trained(trained, 3), load_config(trained / "config.yaml")
    assert run.source.folder.name == "step_00000003"
    assert find_trained(trained / "checkpoints" / "step_00000003").source == run.source
    assert run.sparse_layers() == find_trained(exported).sparse_layers() == ["encoder_1", "decoder_1"]
    with pytest.raises(ConfigError, match="is a run, whose own configuration is used"):
        run.data(given)
    run.check_routing("trained")
    with pytest.raises(ConfigError, match="is an export, which routes as it was exported"):
        find_trained(exported).check_routing("trained")
    with pytest.raises(ConfigError, match="does not say how text becomes examples: add --config"):
        find_trained(exported).data(None)
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"num_experts": 0}))
    try:
        with pytest.raises(ConfigError, match="is dense: it has no sparse layer"):
            check_sparse(find_trained(exported))
    finally:
        (exported / "config.json").write_text(json.dumps(config))


def test_texts_by_name(trained: Path, tmp_path: Path):
    (tmp_path / "a=b.txt").touch()
    assert texts(["own", "law=x/*.gz", f"{tmp_path}/a=b.txt", "x/news.jsonl.gz", "y/val/*.gz"], {"own": ["o/*"]}) == {
        "own": ["o/*"], "law": "x/*.gz", "a=b": f"{tmp_path}/a=b.txt", "news": "x/news.jsonl.gz", "val": "y/val/*.gz"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="another text is named news"):
        texts(["x/news.txt", "y/news.txt"], {})
    with pytest.raises(ConfigError, match="--data lwa: neither a file nor a domain of the run, which has law, own"):
        texts(["lwa"], {"law": "x", "own": "y"})
    config = load_config(trained / "config.yaml")
    with pytest.raises(ValueError, match=r"too few for one batch of 9000 \(--batch-size\)"):
        held_out_batches(config.data, Tokenizer(config.data.vocabulary), {}, examples=9000, batch_size=9000)


def test_a_fine_tuned_model_is_traced_on_its_tasks(corpus: dict[str, Any], tmp_path: Path):
    files = []
    for name, size in (("one", 5), ("two", 3)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"inputs": "kada lone", "targets": "mipo"}) + "\n" for _ in range(size)))
        files.append({"name": name, "train_files": str(file), "validation_files": str(file)})
    sizes = {"inputs_length": 16, "targets_length": 8}
    data = DataConfig.model_validate(
        {"objective": "tasks", "task_files": files, **sizes} | {"vocabulary": corpus["vocabulary"]}
    )
    held_out = held_out_batches(data, Tokenizer(data.vocabulary), {}, examples=8, batch_size=4)
    assert held_out.domains == ["one", "two"]
    assert [domain_B.tolist() for domain_B in held_out.domain_NB] == [[0] * 4, [1] * 4]
    real = [(batch["input_ids"] != 0).any(1).sum() for batch in held_out.batches]
    assert real == [4, 3]


def test_options_of_the_collection_are_refused_for_a_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.argv", ["study", str(tmp_path), "--examples", "3"])
    arguments = parse_arguments()
    assert all(getattr(arguments, name) is None for name in OF_COLLECTION if name != "examples")
    with pytest.raises(ConfigError, match="holds a trace that was collected already"):
        read_traces(arguments)
