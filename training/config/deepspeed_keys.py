"""The keys that DeepSpeed reads from its configuration, found by asking DeepSpeed itself.

Importing DeepSpeed takes seconds, so ``deepspeed_keys.json`` holds the answer for the version of requirements.txt.
After an upgrade, ``python -m training.config.deepspeed_keys`` writes it anew. Another version is asked itself.
"""

import enum
import json
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from common.strict_json import to_json
from training.config.values import kinds_of

FILE = Path(__file__).with_suffix(".json")
# A section is {"keys": {…}}; another key {"types": […]} of JSON, with "values" if they are listed. No types: any.
Key = dict[str, Any]

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
TYPES[type(None)] = "null"
SMALLEST = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
NO_KEY = "?"
DEEPEST = 4


def known_keys() -> tuple[str, dict[str, Key]]:
    """Return the version of the installed DeepSpeed, and its keys by name."""
    installed = metadata.version("deepspeed")
    table = json.loads(FILE.read_text(encoding="utf-8"))
    return installed, table["keys"] if table["version"] == installed else ask_deepspeed()


def ask_deepspeed() -> dict[str, Key]:
    """Return the keys by name; imports DeepSpeed."""
    import deepspeed  # noqa: F401 - it sets up the logger

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        section = _Asked(SMALLEST)
        _read(section)
        keys = {name: _describe((name,), default) for name, default in sorted(section.asked.items())}
    finally:
        logging.disable(before)
    return {name: key for name, key in keys.items() if key is not None}


class _Asked(dict[str, Any]):
    """A section that notes the keys that it is asked for, with their defaults."""

    def __init__(self, content: dict[str, Any]):
        super().__init__(content)
        self.asked: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.setdefault(key, default)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.setdefault(str(key), None)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.setdefault(key, None)
        return super().__getitem__(key)

    def keys(self) -> "_Names":  # type: ignore[override]
        return _Names(self)

    def __copy__(self) -> Self:
        return self


class _Names:
    def __init__(self, section: _Asked):
        self.section = section

    def __contains__(self, key: object) -> bool:
        return key in self.section

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self.section)


def _read(options: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig(options)


def _describe(path: tuple[str, ...], default: Any) -> Key | None:
    """Describe the key at a path: give it a section with a key that does not exist, and see what DeepSpeed does."""
    from deepspeed.runtime.config import DeepSpeedConfigError

    probe = _Asked({NO_KEY: 0})
    options: dict[str, Any] = probe
    for name in reversed(path):
        options = _Asked({name: options})
    options = _Asked({**SMALLEST, **options})
    try:
        _read(options)
    except ValidationError as error:
        model = _model_at(error)
        return {"keys": _fields(model)} if model is not None else {"types": []}
    except DeepSpeedConfigError as error:
        if "removed" in str(error):
            return None
    except Exception:  # noqa: S110 - no section: the probe was used as a number or as text
        pass
    asked = {name: value for name, value in sorted(probe.asked.items()) if name != NO_KEY}
    if asked and len(path) < DEEPEST:
        return {"keys": {name: key for name, value in asked.items() if (key := _describe((*path, name), value))}}
    kind = TYPES.get(type(default))
    if kind not in ("boolean", "integer", "number", "string"):
        return {"types": []}
    return {"types": sorted({kind, "object", "array", *(["number"] if kind == "integer" else [])})}


def _model_at(error: ValidationError) -> type[BaseModel] | None:
    """Return the model that refused ``NO_KEY``."""
    location = next((e["loc"] for e in error.errors() if e["loc"][-1] == NO_KEY), None)
    model = next((model for model in _models(BaseModel) if model.__name__ == error.title), None)
    for name in (location or ())[:-1]:
        annotation = model.model_fields[str(name)].annotation if model else None
        model = next((kind for kind in kinds_of(annotation) if issubclass(kind, BaseModel)), None)
    return model if location else None


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("deepspeed."):
            yield model
        yield from _models(model)


def _fields(model: type[BaseModel]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for name, field in model.model_fields.items():
        kinds = kinds_of(field.annotation)
        section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        values = [member.value for kind in kinds if issubclass(kind, enum.Enum) for member in kind]
        key: Key = {"types": sorted({TYPES[kind] for kind in kinds if kind in TYPES})}
        if section is not None:
            key = {"keys": _fields(section), "types": key["types"]}
        elif values:
            key = {"types": sorted({*key["types"], *(TYPES[type(value)] for value in values)}), "values": values}
        elif any(kind not in TYPES for kind in kinds):
            key = {"types": []}
        keys |= {alias: key for alias in (name, field.alias) if alias}
    return dict(sorted(keys.items()))


if __name__ == "__main__":
    lines = [f"  {to_json(name)}: {to_json(key)}" for name, key in ask_deepspeed().items()]
    head = f'{{\n "version": {to_json(metadata.version("deepspeed"))},\n "keys": {{\n'
    FILE.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")
