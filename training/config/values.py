"""Values of YAML, read by the type of their key.

YAML 1.1 guesses a type from a value's looks: ``no`` is false, ``010`` is 8, ``2024-05-01`` a date. Here the type of the
key decides: where it is text, the value is what was typed.
"""

import copy
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from training.config.errors import ConfigError

Sections = Mapping[str, type[BaseModel]]

NOTHING = ("", "~", "null", "Null", "NULL")
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
QUOTE = "quote a value that begins with one of * & ! % @ ` [ {"


def read_yaml(content: bytes, sections: Sections) -> dict[str, Any]:
    """Read a configuration file.

    Args:
        content: of the file, UTF-8 or UTF-16 with a byte order mark.
        sections: each section's class by its name.

    Returns:
        Plain values by section and key; a section without keys is absent.

    Raises:
        ConfigError: not YAML, no mapping of sections, a key that is given twice, or a number that has two meanings.
    """
    if b"$" in content:  # its values may be those of the environment, which changes
        return _read_content(content, tuple(sections.items()))
    return copy.deepcopy(_read_known(content, tuple(sections.items())))


def _read_content(content: bytes, pairs: tuple[tuple[str, type[BaseModel]], ...]) -> dict[str, Any]:
    sections = dict(pairs)
    node, loader = compose(content)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("must hold the sections model, data, … with their keys")
    values = {name: read_node(loader, value, sections.get(name), name) for name, value in _entries(loader, node, "")}
    return {name: value for name, value in values.items() if value is not None}


_read_known = functools.lru_cache(maxsize=8)(_read_content)  # a study reads one file for each of its runs


def compose(content: bytes) -> tuple[yaml.Node | None, yaml.SafeLoader]:
    """Parse YAML to nodes, whose values have no types yet; None without content. Raises ConfigError."""
    try:
        loader = yaml.SafeLoader(content)
        return loader.get_single_node(), loader
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"not UTF-8 text at byte {error.position}: save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        typed = mark.buffer and mark.buffer[mark.pointer :]
        starts = "while scanning an a" in (error.context or "") or (typed or "")[:1] in ("%", "@", "`")
        flow = any(character in (mark.get_snippet() or "") for character in "[{")
        hint = f": {QUOTE}" if starts or flow else ""
        where = f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(" ".join(f"{where}not YAML: {error.problem}{hint}".split())) from None


def read_node(loader: yaml.SafeLoader, node: yaml.Node, annotation: Any, key: str) -> Any:
    """Return the plain value of a node.

    Args:
        loader: that parsed it.
        node: of YAML.
        annotation: the type of the key, or the section's class; None: unknown.
        key: for messages.

    Raises:
        ConfigError: see ``read_yaml``.
    """
    if isinstance(node, yaml.MappingNode):
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
        known = {name: field.annotation for name, field in fields.items()}
        value_of = value_annotation(annotation)
        return {
            name: read_node(loader, value, known.get(name, value_of), f"{key}.{name}")
            for name, value in _entries(loader, node, f"{key}.")
        }
    if isinstance(node, yaml.SequenceNode):
        item = item_of(annotation)
        return [read_node(loader, value, item, f"{key}[{i}]") for i, value in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:  # quoted
        return from_environment(node.value, key) if str in kinds_of(annotation) else node.value
    return read_plain(node.value, annotation, key)


def read_plain(text: str, annotation: Any, key: str) -> Any:
    """Return the value of text without quotes, by the type of its key; see ``read_node``."""
    kinds = kinds_of(annotation)
    if str in kinds:
        return None if text == "" or (type(None) in kinds and text in NOTHING) else from_environment(text, key)
    if text in NOTHING:
        return None
    if bool in kinds or not kinds:
        switch = SWITCHES.get(text.lower())
        if switch is not None:
            return switch
    if LEADING_ZERO.fullmatch(text) and text.replace("_", "").isdigit():
        raise ConfigError(f"{key} = {text}: a leading zero means base 8 to some readers: write {int(text)}")
    for number in (lambda: int(text, 0), lambda: float(text)):
        try:
            value = number()
        except ValueError:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} = {text}: must be a finite number")
        if kinds == {int} and isinstance(value, float) and value.is_integer():
            raise ConfigError(f"{key} = {text}: must be a valid integer: write {value:.0f}")
        return value
    return text


def kinds_of(annotation: Any) -> set[type]:
    """Return the plain types that an annotation allows, through ``Annotated``, unions and literals."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kinds_of(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return set().union(*map(kinds_of, arguments))
    if origin is typing.Literal:
        return {type(value) for value in arguments}
    found = origin or annotation
    return {found} if isinstance(found, type) else set()


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a key that has keys of its own, or of the items of a list of such; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts = typing.get_args(annotation) if typing.get_origin(annotation) is not typing.Literal else ()
    return next((found for part in parts if (found := section_of(part)) is not None), None)


def nested_keys(prefix: str, section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the full name and the last word of every key of a section, the keys below its keys included."""
    for word, field in section.model_fields.items():
        yield f"{prefix}.{word}", word
        below = section_of(field.annotation)
        if below is not None and item_of(field.annotation) is None:
            yield from nested_keys(f"{prefix}.{word}", below)


def item_of(annotation: Any) -> Any:
    """Return the annotation of a list's items; None if it is no list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return arguments[0]
    if origin in (types.UnionType, typing.Union, typing.Annotated):
        return next((item for part in arguments if (item := item_of(part)) is not None), None)
    return None


def value_annotation(annotation: Any) -> Any:
    """Return the annotation of a mapping's values; None if it is no mapping."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return arguments[1]
    if origin in (types.UnionType, typing.Union, typing.Annotated):
        return next((found for part in arguments if (found := value_annotation(part)) is not None), None)
    return None


def from_environment(text: str, key: str) -> str:
    """Replace ``${NAME}`` by the environment variable. Raises ConfigError if it is not set."""

    def value(match: re.Match[str]) -> str:
        if not os.environ.get(match[1]):
            raise ConfigError(f"{key} = {text}: the environment variable {match[1]} is not set: export it")
        return os.environ[match[1]]

    return ENVIRONMENT.sub(value, text)


def _entries(loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the keys of a mapping with their nodes, after what ``<<`` merges into it."""
    seen = set()
    for name, _ in node.value:
        if name.value in seen and name.value != "<<":
            line = name.start_mark.line + 1
            raise ConfigError(f"line {line}: {prefix}{name.value} is given twice: remove one")
        seen.add(name.value)
    try:
        loader.flatten_mapping(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{prefix}<<: {error.problem}") from None
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ConfigError(f"line {name.start_mark.line + 1}: a key must be a word")
        yield name.value, value
