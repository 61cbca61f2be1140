"""What a run keeps of its inputs, so that it can be moved: its vocabulary, and where its text is from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data.tasks
from common.files import write_atomically
from common.strict_json import to_json
from data.config import C4
from data.tokenizer import MODEL_FILE, Tokenizer
from training.config.errors import ConfigError
from training.config.run import RunConfig
from training.run.folder import RunFolder

DATASET_FILE = "dataset.json"  # what ``python -m data.prepare`` writes beside the text
UNKNOWN = "unknown to this project, which did not fetch the text"


def keep_inputs(run_dir: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Copy the vocabulary into the run, and write down the origin and license of its text.

    What the run has already and cannot be read again, as after a move, stays.
    """
    run = RunFolder(run_dir)
    vocabulary = run.vocabulary / MODEL_FILE
    if not vocabulary.is_file() or Tokenizer(vocabulary.parent).fingerprint != tokenizer.fingerprint:
        vocabulary.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(vocabulary, (tokenizer.folder / MODEL_FILE).read_bytes())
    texts = list(_origins(config))
    if not run.text_file.is_file() or any(text["license"] != UNKNOWN for text in texts):
        write_atomically(run.text_file, to_json(texts, indent=2) + "\n")


def kept_vocabulary(run_dir: Path) -> Path | None:
    """Return the run's copy of its vocabulary, a folder; None for a run that has none."""
    folder = RunFolder(run_dir).vocabulary
    return folder if (folder / MODEL_FILE).is_file() else None


def texts_of(run_dir: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Return ``origin``, ``license`` and, where it is known, ``train_documents`` of each training text."""
    try:
        texts = json.loads(RunFolder(run_dir).text_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        texts = None
    return texts if isinstance(texts, list) else list(_origins(config))


def vocabulary_of(run_dir: Path, config: RunConfig, fingerprint: str, given: Path | None = None) -> Tokenizer:
    """Return the vocabulary that the run was trained with.

    Args:
        run_dir: the run's folder, wherever it is now.
        config: of the run.
        fingerprint: of the vocabulary.
        given: a folder to take in place of the run's copy and of ``data.vocabulary``.

    Raises:
        ConfigError: it is in none of them.
    """
    places = {"--vocabulary": given} if given else {"the run": kept_vocabulary(run_dir)}
    if not given:
        places["data.vocabulary"] = Path(config.data.vocabulary)
    reasons = []
    for setting, folder in places.items():
        if folder is None:
            continue
        try:
            tokenizer = Tokenizer(folder, setting=setting)
        except ValueError as error:
            if given:
                raise ConfigError(str(error)) from None
            reasons.append(f"{folder} has no {MODEL_FILE} that can be read")
            continue
        if tokenizer.fingerprint == fingerprint:
            return tokenizer
        reasons.append(f"{setting} = {folder} has fingerprint {tokenizer.fingerprint}, is no longer that of the run")
    raise ConfigError(
        f"{run_dir} was trained with a vocabulary of fingerprint {fingerprint}; {'; '.join(reasons)}: "
        f"restore it, or name its folder with --vocabulary"
    )


def _origins(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Yield what is known of each training text, or task."""
    for name in data.tasks.expand(config.data.tasks):
        rows = data.tasks.get(name).source
        yield {"origin": f"task {name}: {rows.origin}", "license": rows.license}
    for own in config.data.task_files:
        patterns = [own.train_files] if isinstance(own.train_files, str) else own.train_files
        yield from (_origin(files) for files in patterns)
    if config.data.objective == "tasks":
        return
    for source in config.data.train_sources():
        keys = source.keys
        if keys.source == "hub":
            terms = "ODC-BY 1.0; the Common Crawl terms of use apply to the text"
            version = " ".join(filter(None, (keys.hub_dataset, keys.hub_config, "at", keys.hub_revision)))
            yield {
                "origin": f"{version}, from the Hugging Face Hub",
                "license": terms if keys.hub_dataset == C4 else f"see the page of {keys.hub_dataset} there",
            }
        else:
            yield from (_origin(files) for files in ([source.files] if isinstance(source.files, str) else source.files))


def _origin(files: str) -> dict[str, Any]:
    """Return what is known of files: the description that ``data.prepare`` left beside them, or only their name.

    Files of one domain of a data set have the description of that domain.
    """
    for folder in (Path(files), *Path(files).parents[:3]):
        try:
            found = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
            known = {key: found[key] for key in ("origin", "license", "train_documents")}
            for name in Path(files).parts[len(folder.parts) :]:
                if name in found.get("domains", {}):
                    domain = found["domains"][name]
                    documents = domain["train"]["documents"]
                    known = {"origin": f"{name}: {domain['source']}", "license": domain["license"]}
                    return known | {"train_documents": documents}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        # The license of one's own files is only known to their owner.
        recipe = found.get("recipe", {})
        unknown = recipe.get("source") == "files" and not recipe.get("license")
        return known | ({"license": UNKNOWN} if unknown else {})
    return {"origin": files, "license": UNKNOWN}
