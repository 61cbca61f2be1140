"""Asks a trained model the questions of tasks, on all ranks, and writes answers and scores on the first."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from common.files import write_atomically
from common.logs import get_logger
from common.strict_json import finite_or_null, to_json
from common.text import counted
from training.export.trained import Found, Trained
from training.tasks.answers import Answerer, Decoding, gathered, likeliest
from training.tasks.questions import Asked, Question, encode
from training.tasks.scores import Result, means, result_of
from training.tasks.tables import markdown

RESULTS_FILE, TABLE_FILE = "results.json", "table.md"
Answers = Literal["both", "generated", "likeliest"]

logger = get_logger("evaluate")


@dataclass(frozen=True)
class Options:
    """How tasks are evaluated.

    Attributes:
        decoding: how answers are generated.
        answers: which answers of class tasks; other tasks have generated ones alone.
        inputs_length: most tokens of the encoder.
        folder: of prepared tasks; None: the usual one.
        out: folder of the results.
    """

    decoding: Decoding
    answers: Answers
    inputs_length: int
    folder: Path | None
    out: Path


def evaluate_tasks(found: Found, trained: Trained, every: list[Asked], options: Options) -> list[Result]:
    """Return the results of all tasks on rank 0, nothing on others; collective over all ranks.

    Writes ``<task>.jsonl`` for each task as soon as it is done.
    """
    answerer = Answerer(trained.model, found.tokenizer, options.decoding, dist.get_rank(), dist.get_world_size())
    results = []
    for asked in every:
        began = time.perf_counter()
        questions = encode(asked, found.tokenizer, options.inputs_length, sentinels=options.decoding.sentinels)
        by_generation = options.answers != "likeliest"
        texts = gathered(answerer.generate(questions)) if by_generation else None
        totals = None
        if asked.has_choices and options.answers != "generated":
            totals = gathered(answerer.log_probabilities(questions))
        if answerer.rank == 0:
            results.append(_write(asked, questions, texts, totals, options))
            seconds = time.perf_counter() - began
            logger.info(f"{asked.task.name}: {counted(len(questions), 'example')} in {seconds:.1f} s")
    return results


def write_results(
    found: Found, trained: Trained, results: list[Result], nats: dict[str, float], options: Options
) -> list[Result]:
    """Write ``results.json`` and ``table.md`` and return the results with the means of groups.

    Args:
        found: the model.
        trained: the same, loaded.
        results: of the tasks.
        nats: columns of the cross-entropy of held-out text; empty if it was not asked for.
        options: of the evaluation.
    """
    complete = [*results, *means(results)]
    content = {
        "model": str(found.name),
        "step": trained.step,
        "capacity": trained.config.capacity,
        "ranks": dist.get_world_size(),
        "decoding": asdict(options.decoding),
        "inputs_length": options.inputs_length,
        "results": {result.name: result.as_json() for result in complete},
        "held_out": nats,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / RESULTS_FILE, to_json(finite_or_null(content), indent=1) + "\n")
    parts = [f"# {found.name}", describe(trained, results, options)]
    parts += [markdown(complete)] if complete else []
    parts += ["\n".join(f"- {name}: {value:.4f} nats per target token" for name, value in nats.items())] if nats else []
    write_atomically(options.out / TABLE_FILE, "\n\n".join(parts) + "\n")
    return complete


def describe(trained: Trained, results: list[Result], options: Options) -> str:
    """Return in words what was evaluated, and how."""
    decoding = options.decoding
    of_step = "" if trained.step is None else f"Step {trained.step:,}. "
    how = "Greedy decoding" if decoding.beams == 1 else f"{decoding.beams} beams"
    config = trained.config
    served = "every token is served by the experts that it chooses"
    if not config.num_experts:
        served = "dense"
    elif config.capacity != "dropless":
        served = f"capacity factor {config.eval_capacity_factor}, so that answers depend on the batch"
    text = (
        f"{of_step}{how} of at most {decoding.max_length} tokens, inputs of at most {options.inputs_length}; {served}."
    )
    cut = [f"{result.cut:,} of {result.examples:,} inputs of {result.name}" for result in results if result.cut]
    return f"{text} Cut: {', '.join(cut)}." if cut else text


def _write(
    asked: Asked,
    questions: list[Question],
    texts: dict[int, str] | None,
    totals: dict[int, list[float]] | None,
    options: Options,
) -> Result:
    choices = None if totals is None else likeliest(asked, totals)
    lines = []
    for number, (example, question) in enumerate(zip(asked.examples, questions, strict=True)):
        line: dict[str, Any] = {"inputs": example.inputs, "target": example.targets}
        if question.is_cut:
            line["inputs_were_cut"] = True
        if texts is not None:
            line["prediction"] = texts[number]
        if totals is not None and choices is not None:
            among = list(asked.task.choices(example.row) or ())
            line |= {"likeliest": choices[number], "choices": among, "scores": totals[number]}
        lines.append(to_json(finite_or_null(line), ensure_ascii=False) + "\n")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / f"{asked.task.name}.jsonl", "".join(lines))
    generated = None if texts is None else [texts[number] for number in range(len(questions))]
    cut = sum(question.is_cut for question in questions)
    return result_of(asked, generated, choices, cut, options.folder)
