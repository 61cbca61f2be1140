"""``key=value`` overrides of the command line."""

import re
import typing
from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from training.config.errors import ConfigError
from training.config.values import Sections, compose, item_of, kinds_of, nested_keys, read_node, read_plain

KEY = re.compile(r"[A-Za-z_]\w*((\.\w+)|(\[\d+\]))+")
PART = re.compile(r"\w+")
QUOTED = re.compile(r"""(["'])((?!\1).)*\1""")


def override(values: dict[str, Any], text: str, sections: Sections) -> None:
    """Set one value of ``values``, in place, from ``section.key=value``; an item of a list is ``section.key[0]``.

    Args:
        values: plain values by section and key.
        text: of the command line. It is not YAML where the key's type is text.
        sections: each section's class by its name.

    Raises:
        ConfigError: not of this form, or a value that its key cannot have.
    """
    key, equals, typed = text.partition("=")
    if not equals or not KEY.fullmatch(key):
        raise ConfigError(malformed(text, sections))
    *parents, name = [int(part) if part.isdigit() else part for part in PART.findall(key)]
    target: Any = values
    for depth, parent in enumerate(parents):
        following = [*parents, name][depth + 1]
        if isinstance(parent, str) and isinstance(target, dict) and target.get(parent) is None:
            target[parent] = [] if isinstance(following, int) else {}
        target = _inside(target, parent, parents[:depth], text)
    value = _read(typed, annotation_of([*parents, name], sections), key)
    if not (isinstance(target, dict) and isinstance(name, str)):
        _inside(target, name, parents, text)
    target[name] = value


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """Replace interpolations of other keys, such as ``${training.name}``. Raises ConfigError."""
    if not _interpolates(values):  # OmegaConf takes longer than all else of reading a configuration
        return values
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(values), resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{error.full_key or 'the config'}: {reason}") from None


def _interpolates(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_interpolates, value.values()))
    return any(map(_interpolates, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value


def annotation_of(parts: Sequence[str | int], sections: Sections) -> Any:
    """Return the type of a key; None if it is unknown."""
    annotation: Any = sections.get(str(parts[0]))
    for part in parts[1:]:
        if isinstance(part, int):
            annotation = item_of(annotation)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and part in annotation.model_fields:
            annotation = annotation.model_fields[part].annotation
        else:
            return None
    return annotation


def malformed(text: str, sections: Sections) -> str:
    """Return what is wrong with a word that is no override, and what was probably meant."""
    name, equals, value = text.partition("=")
    key, value = name.strip().lstrip("-"), value.strip() or "…"
    homes = [full for name, model in sections.items() for full, word in nested_keys(name, model) if word == key]
    fix = "such as training.steps=100"
    if homes:
        fix = f"did you mean {homes[0]}={value}?"
    elif "." in key or key in ("", "="):
        example = f"{key}={value}" if key else "training.steps=100"
        fix = f"write {example} in one word, without blanks or dashes"
    elif equals and key in sections:
        fix = f"set its keys, such as {key}.{next(iter(sections[key].model_fields))}=…"
    return f"override {text!r} is not of the form section.key=value: {fix}"


def _inside(target: Any, part: str | int, above: Sequence[str | int], text: str) -> Any:
    try:
        return target[part]
    except (KeyError, IndexError, TypeError):
        parent = ".".join(map(str, above)) or "the config"
        found = f"has {len(target)} items" if isinstance(target, list) else "has no keys of its own"
        raise ConfigError(f"override {text}: {parent} {found}") from None


def _read(typed: str, annotation: Any, key: str) -> Any:
    kinds = kinds_of(annotation)
    structured = (list in kinds and _is_yaml_list(typed)) or (dict in kinds and _is_yaml_mapping(typed))
    if str in kinds and not structured and not QUOTED.fullmatch(typed):
        return read_plain(typed, annotation, key)
    try:
        node, loader = compose(typed.encode())
    except ConfigError as error:
        raise ConfigError(f"{key} = {typed}: {error}") from None
    return None if node is None else read_node(loader, node, annotation, key)


def _is_yaml_mapping(text: str) -> bool:
    """Return whether text is ``{name: value, …}``; braces are also part of patterns of files, as ``{a,b}``."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    return isinstance(node, yaml.MappingNode) and bool(node.flow_style) and all(v.value != "" for _, v in node.value)


def _is_yaml_list(text: str) -> bool:
    try:
        return isinstance(yaml.compose(text, yaml.SafeLoader), yaml.SequenceNode)
    except yaml.YAMLError:
        return False
