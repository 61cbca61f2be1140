"""``train.py --help``: every key with its meaning, unit and default, read from the declarations."""

import textwrap
import types
import typing

from pydantic import BaseModel

from training.config.run import SECTIONS


def _type_name(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        names = [_type_name(part) for part in typing.get_args(annotation)]
        return "float" if names == ["float", "int"] else " | ".join(names)
    if typing.get_origin(annotation) is list:
        return "list"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def describe_keys() -> str:
    """Return all sections and keys as text, one paragraph per key."""
    lines = []
    for section, config in SECTIONS.items():
        lines.append(f"\n{section}:")
        lines += _describe_fields(section, config)
    return "\n".join(lines)


def _describe_fields(prefix: str, config: type[BaseModel]) -> list[str]:
    lines = []
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _describe_fields(f"{prefix}.{name}", field.annotation)
            continue
        default = "required" if field.is_required() else f"default {_plain(field.default)}"
        lines.append(f"  {prefix}.{name} ({_type_name(field.annotation)}, {default})")
        lines += textwrap.wrap(field.description or "", 112, initial_indent="      ", subsequent_indent="      ")
        item = (typing.get_args(field.annotation) or (None,))[0]
        if typing.get_origin(field.annotation) is list and isinstance(item, type) and issubclass(item, BaseModel):
            lines += _describe_fields(f"{prefix}.{name}[]", item)
    return lines


def _plain(default: object) -> object:
    return "null" if default is None else default
