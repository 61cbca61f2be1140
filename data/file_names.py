"""The type of keys that name files."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from common.paths import UserPath

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _check_patterns(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str) and one for one in several):
        raise ValueError(f"{value!r} is not a file, a folder, a pattern or a URL, nor a list of them")
    return value


# What names files: a path, a folder, a glob or a URL, or several.
FilePatterns = Annotated[UserPath | list[UserPath], BeforeValidator(_check_patterns)]


def _check_domains(value: Any) -> Any:
    if not isinstance(value, dict):
        return _check_patterns(value)
    if not value:
        raise ValueError("names no domain: give each domain its files, or files without domains")
    for name, files in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"{name!r} cannot name a domain: use letters, digits, '.', '_' and '-' alone")
        _check_patterns(files)
    return value


# The same, or of each of several domains by its name.
DomainFiles = Annotated[
    UserPath | list[UserPath] | dict[str, UserPath | list[UserPath]], BeforeValidator(_check_domains)
]
