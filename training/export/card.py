"""The model card of an export: how the model was trained, on what text, how good it is, how to use it."""

from typing import Any

from omegaconf import OmegaConf

from model.size import count_parameters
from model.st_moe import StMoeConfig
from training.checkpoint.store.state import SavedState
from training.config.run import RunConfig

EXAMPLE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()

inputs = tokenizer("TEXT", return_tensors="pt")
output = model.generate(**inputs, do_sample=False)
print(tokenizer.decode(output[0]))
"""
OBJECTIVES = {
    "span_corruption": (
        "Paris is the <extra_id_0> of <extra_id_1>.",
        "It fills spans: the sentinels `<extra_id_0>`, `<extra_id_1>`, … stand for what is missing, and the output\n"
        "repeats each sentinel with the text that it stands for.",
    ),
    "tasks": (
        "sst2 sentence: a pleasure to watch",
        "It was fine-tuned on tasks and answers as their targets do.",
    ),
    "prefix_lm": ("Paris is the capital of", "It continues a text."),
}


def model_card(
    name: str,
    config: RunConfig,
    exported: StMoeConfig,
    state: SavedState,
    summary: dict[str, Any] | None,
    texts: list[dict[str, Any]],
    routing: str,
) -> str:
    """Return the text of ``README.md``.

    Args:
        name: of the run.
        config: of the run.
        exported: of the model.
        state: of the checkpoint.
        summary: of the run, if it has finished at this checkpoint.
        texts: see ``kept_inputs.texts_of``.
        routing: see ``serving.served``.
    """
    total, active = count_parameters(exported)
    rows = [
        ("parameters", f"{total:,}"),
        ("parameters active per token", f"{active:,}"),
        ("steps", f"{state.step:,}"),
        ("tokens", f"{state.tokens:,}"),
        ("global batch", f"{config.training.global_batch_size} sequences of {config.data.inputs_length} input tokens"),
        ("objective", config.data.objective),
        ("optimizer", f"{config.optimizer.name}, {config.optimizer.schedule} schedule"),
        ("precision", config.training.precision),
        ("ranks", f"{state.world_size}, ZeRO {state.zero_stage}, experts over {state.layout.expert_parallel_size}"),
        ("commit of the code", state.code.get("git_commit") or "unknown"),
        *_metrics(state, summary),
    ]
    text, use = OBJECTIVES[config.data.objective]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    sources = "\n".join(f"- {_describe(source)}" for source in texts)
    return f"""---
library_name: transformers
tags: [st-moe, mixture-of-experts, t5]
---

# {name}

{"A sparse" if exported.num_experts else "A dense"} encoder-decoder of the ST-MoE family \
([Zoph et al. 2022](https://arxiv.org/abs/2202.08906)).
{use}

```python
{EXAMPLE.replace("TEXT", text)}```

The code of the model is in this folder, hence `trust_remote_code=True`. It needs `torch`, `transformers`,
`sentencepiece` and `safetensors`.

## Training

| | |
| --- | --- |
{table}

## Routing

{routing}

## Text

{sources}

The license of the text is not a license of the weights, which this card does not give.

## Configuration

```yaml
{OmegaConf.to_yaml(OmegaConf.create(config.model_dump())).strip()}
```
"""


def _metrics(state: SavedState, summary: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Rows of the last evaluation, if there was one, beside the unigram baseline, if it is known."""
    if state.evaluated is None:
        return [("validation", "none before this checkpoint")]
    step, cross_entropy = int(state.evaluated[0]), state.evaluated[1]
    rows = [(f"validation cross-entropy at step {step:,}, nats per target token", f"{cross_entropy:.4f}")]
    rows += [(f"the same of domain {name}", f"{nats:.4f}") for name, nats in state.evaluated_domains.items()]
    rows += [(f"score of task {name}, %", f"{score:.1f}") for name, score in state.scores.items()]
    if summary is not None and summary.get("unigram_cross_entropy") is not None:
        rows.append(("the same of a unigram model", f"{summary['unigram_cross_entropy']:.4f}"))
    return rows


def _describe(source: dict[str, Any]) -> str:
    documents = f", {source['train_documents']:,} documents" if "train_documents" in source else ""
    return f"{source['origin']}{documents}; license: {source['license']}"
