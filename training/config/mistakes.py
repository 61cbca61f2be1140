"""The first mistake that pydantic found, as one line that names key, value and fix."""

import difflib
import re
import typing
from typing import Any

from pydantic import ValidationError

from common.text import counted
from training.config.errors import FP16_REFUSED
from training.config.values import Sections, item_of, nested_keys, section_of

NAME = "begin with a letter or digit, then use letters, digits, '.', '_' and '-' alone"
HELP = "see python train.py --help"


def first_mistake(error: ValidationError, sections: Sections) -> str:
    """Describe the first mistake of a configuration.

    Args:
        error: of the validation of all sections.
        sections: each section's class by its name.
    """
    mistake, *others = sorted(
        error.errors(), key=lambda one: one["type"] == "missing"
    )  # a misspelt name is missing, too
    location = mistake["loc"]
    key, siblings = _locate(location, sections)
    if mistake["type"] == "value_error":  # from a validator of this project, which names the fix, and usually the key
        return _own(str(mistake["ctx"]["error"]), mistake["input"], key, sections)
    value = mistake["input"]
    also = f" (and {counted(len(others), 'more mistake')})" if others and others[0]["loc"][:2] != location[:2] else ""
    if mistake["type"] == "extra_forbidden":
        return _unknown(key, value, siblings, sections) + also
    if mistake["type"] == "missing":
        return f"{key} is missing: add it to the config file{also}"
    if value is None:
        return f"{key} has no value: give it one, or leave it out for its default; {HELP}{also}"
    if key == "training.precision" and value in ("fp16", "float16", "half"):
        return f"{key} = {value}: fp16 {FP16_REFUSED}{also}"
    if mistake["type"] == "string_pattern_mismatch":  # names, the only keys with a pattern
        above = "; training.output_dir names the folder above" if key == "training.name" else ""
        return f"{key} = {value!r}: {NAME}{above}{also}"
    if mistake["type"] == "model_type" and siblings:
        return f"{key} = {value!r}: has keys of its own: set {key}.{siblings[0]}=…{also}"
    reason = mistake["msg"][0].lower() + mistake["msg"][1:]
    return f"{key} = {value!r}: {reason}; {_fix(value, reason)}{also}"


def _own(text: str, value: Any, key: str, sections: Sections) -> str:
    """Name the key of a message as users type it."""
    section, _, name = key.partition(".")
    if text.startswith(tuple(f"{known}." for known in sections)):
        return text
    if name and text.startswith(f"{name} "):
        return f"{section}.{text}"
    if not name and section in sections and text.split(" ", 1)[0] in sections[section].model_fields:
        return f"{section}.{text}"
    return f"{key} = {value}: {text}" if isinstance(value, str) else f"{key}: {text}"


def _unknown(key: str, value: Any, siblings: list[str], sections: Sections) -> str:
    parent, _, name = key.rpartition(".")
    if not parent:
        return _unknown_section(name, value, sections)
    words = dict(full for section, model in sections.items() for full in nested_keys(section, model))
    homes = [full for full, word in words.items() if word == name]
    close = [f"{parent}.{word}" for word in difflib.get_close_matches(name, siblings, n=1)]
    far = [full for full, word in words.items() if word in difflib.get_close_matches(name, words.values(), 1, 0.8)]
    meant = [*homes, *close, *far]
    return f"{key} = {value!r}: unknown key; " + (f"did you mean {meant[0]}?" if meant else HELP)


def _unknown_section(name: str, value: Any, sections: Sections) -> str:
    close = difflib.get_close_matches(name, sections, n=1)
    homes = [full for section, model in sections.items() for full, word in nested_keys(section, model) if word == name]
    if "." in name:
        section, _, key = name.partition(".")
        fix = f"in a file, {key} is a key below {section}:"
    elif close:
        fix = f"did you mean {close[0]}?"
    elif homes:
        fix = f"did you mean {homes[0]}?"
    else:
        fix = f"the sections are {', '.join(sections)}"
    keys = f", with {', '.join(map(str, value))}" if isinstance(value, dict) and value else ""
    return f"{name}: unknown section{keys}; {fix}"


def _fix(value: Any, reason: str) -> str:
    if isinstance(value, str):
        text = value.strip()
        if "number" in reason and re.fullmatch(r"[-+]?\d+,\d+", text):
            return f"write {text.replace(',', '.')}"
        if ("number" in reason or "integer" in reason) and re.fullmatch(
            r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE
        ):
            return f"write {text} without quotes"
        if "boolean" in reason and text.lower() in ("true", "false"):
            return f"write {text.lower()} without quotes"
    if "boolean" in reason and value in (0, 1):
        return f"write {'true' if value else 'false'}"
    return HELP


def _locate(location: tuple[int | str, ...], sections: Sections) -> tuple[str, list[str]]:
    """Return the key at a location of pydantic's, and its sibling keys."""
    names = [str(part) for part in location]
    if not names or names[0] not in sections:
        return ".".join(names) or "the config", list(sections)
    annotation: Any
    key, section, annotation = names[0], sections[names[0]], None
    for part in location[1:]:
        if isinstance(part, int):  # an item of a list
            key, annotation = f"{key}[{part}]", item_of(annotation)
        else:
            key = f"{key}.{part}"
            annotation = section.model_fields[part].annotation if part in section.model_fields else None
        below = section_of(annotation)
        if below is None and typing.get_origin(annotation) is not list:
            break  # pydantic adds the members of a union to the path
        if below is not None and item_of(annotation) is None:
            section = below
    return key, list(section.model_fields)
