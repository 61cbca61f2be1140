"""Which files a user means: paths, folders, globs, braces and URLs, one or a list of them."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from common.paths import searched
from data.config import FILE_ENDINGS, RUN_PREPARE
from data.sources.formats import file_format
from data.sources.remote import is_remote
from data.sources.retry import DataError, reason

HTTP = ("http://", "https://")


def find_files(setting: str, patterns: str | Sequence[str]) -> list[str]:
    """Return the paths or URLs of files that patterns name, in the order of the list, then of braces, then by name.

    A pattern is a file, a folder (all files in and below it whose ending is known), a glob (``*``, ``?``, ``[…]``,
    ``**``) or a URL, each with ranges ``{00..12}`` and choices ``{a,b}``. A name that exists is taken literally,
    whatever characters it has. http(s) cannot list files; s3, gs, hf, … can.

    Args:
        setting: config key or option that holds the patterns, for error messages.
        patterns: one or several.

    Raises:
        ValueError: a pattern names nothing, a folder among other files, a file twice, or a file of unknown format.
        DataError: remote files cannot be listed.
    """
    several = [patterns] if isinstance(patterns, str) else list(patterns)
    found: list[str] = []
    for pattern in several:
        key = f"{setting} = {pattern!r}"
        matches = [path for one in dict.fromkeys(_expand(pattern)) for path in _match(key, one)]
        if not matches:
            raise ValueError(_nothing_found(setting, pattern))
        for path in matches:
            _check_file(key, path)
        found += matches
    counts = Counter(found)
    if len(counts) < len(found):
        repeated, _ = counts.most_common(1)[0]
        raise ValueError(f"{setting} = {patterns!r} names {repeated} twice: name each file once")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expand ranges and choices as a shell does: ``a-{00..02}.gz`` to three names, ``{a,b}/{x,y}`` to four.

    A pattern without them expands to itself.
    """
    brace = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not brace:
        return [pattern]
    first, last, choices = brace.groups()
    head, tail = pattern[: brace.start()], pattern[brace.end() :]
    values = choices.split(",") if choices else [str(n).zfill(len(first)) for n in _range(int(first), int(last))]
    return [name for value in values for name in expand_braces(head + value + tail)]


def _range(first: int, last: int) -> range:
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def _local(path: str) -> str:
    return path.removeprefix("file://")


def _match(key: str, pattern: str) -> list[str]:
    """Return what one pattern without braces names."""
    if pattern.startswith(HTTP) or (is_remote(pattern) and not glob.has_magic(pattern)):
        return [pattern]
    if is_remote(pattern):
        import fsspec  # as in data.sources.remote

        try:
            files, path = fsspec.core.url_to_fs(pattern)
            return sorted(files.unstrip_protocol(name) for name in files.glob(path))
        except Exception as error:
            raise DataError(f"{key} cannot be listed: check the address and packages ({reason(error)})") from error
    path = _local(pattern)
    if os.path.isdir(path):
        return _files_below(key, path)
    if os.path.lexists(path):
        return [path]
    existing, rest = _split_existing(path)
    return sorted(glob.glob(glob.escape(existing) + rest, recursive=True))


def _expand(pattern: str) -> list[str]:
    """Expand the braces of a pattern, but not those in names that exist as they are."""
    if is_remote(pattern):
        return expand_braces(pattern)
    existing, rest = _split_existing(_local(pattern))
    return [existing + name for name in expand_braces(rest)]


def _split_existing(path: str) -> tuple[str, str]:
    """Split a path after the last of its leading folders, or its file, whose name exists as it is."""
    ends = [match.end() for match in re.finditer(r"/+|$", path)]
    for end in reversed(ends):
        if os.path.lexists(path[:end]):
            return path[:end], path[end:]
    return "", path


def _files_below(key: str, folder: str) -> list[str]:
    files = sorted(_visible_files(folder))
    known = [file for file in files if file_format(file) is not None]
    if not known:
        raise ValueError(f"{key}: the folder holds no file with a known ending: use {FILE_ENDINGS}")
    return known


def _visible_files(folder: str) -> Iterator[str]:
    """Yield the files in and below a folder; names that begin with a dot or underscore are others' bookkeeping."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (os.path.join(root, name) for name in files if not name.startswith((".", "_")))


def _check_file(key: str, path: str) -> None:
    if not is_remote(path) and os.path.isdir(_local(path)):
        raise ValueError(
            f"{key}: {path} is a folder, not a file: name the folder itself, or what is in it ({path}/*), or narrow "
            "the pattern"
        )
    if file_format(path) is None:
        raise ValueError(f"{key}: {path} has an unknown file ending: use {FILE_ENDINGS}")


def _nothing_found(setting: str, pattern: str) -> str:
    fix = f"set {setting} to a file, a folder, a pattern or a list of them"
    if "," in pattern and "{" not in pattern:
        fix = f"for several, give a list ({setting}=[{pattern}])" if setting[:2] != "--" else "separate files by blanks"
    elif setting == "data.train_files" or setting.startswith("data.validation_files"):
        fix = f"{RUN_PREPARE}, or {fix}"
    where = searched(_local(pattern))
    return f"{setting} = {pattern!r} matches no file{where}: {fix}"
