"""``train.py --help``: every key with its meaning, unit and default, from where it is declared."""

import textwrap
import types
import typing

from training.config import SECTIONS


def _type_name(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        names = [_type_name(part) for part in typing.get_args(annotation)]
        return "float" if names == ["float", "int"] else " | ".join(names)
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def describe_keys() -> str:
    """All sections and keys, one paragraph each."""
    lines = []
    for section, config in SECTIONS.items():
        lines.append(f"\n{section}:")
        for name, field in config.model_fields.items():
            default = "null" if field.default is None else field.default
            lines.append(f"  {section}.{name} ({_type_name(field.annotation)}, default {default})")
            lines += textwrap.wrap(field.description or "", 112, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
