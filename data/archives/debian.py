"""Reads files out of a Debian package in memory: an ``ar`` archive that holds a compressed tar archive."""

import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


def read_deb(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the regular files of a package that are wanted, by path without ``./``, in the order of the paths.

    Args:
        path: of the ``.deb``.
        wanted: of a path such as ``usr/share/doc/x/copyright``.

    Raises:
        ValueError: the file is no Debian package.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_archive(path.read_bytes()))) as archive:
            found = {}
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name):
                    file = archive.extractfile(member)
                    assert file is not None, name
                    found[name] = file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} is not a Debian package: {error}") from error
    return dict(sorted(found.items()))


def _data_archive(content: bytes) -> bytes:
    """Return the member ``data.tar.*`` of an ``ar`` archive."""
    position = len(AR_MAGIC)
    while content.startswith(AR_MAGIC) and position + AR_HEADER <= len(content):
        name, size_field = content[position : position + 16].strip(), content[position + 48 : position + 58].strip()
        if not size_field.isdigit():
            break
        size = int(size_field)
        position += AR_HEADER
        if name.startswith(b"data.tar"):
            return content[position : position + size]
        position += size + size % 2  # members begin at even offsets
    raise tarfile.ReadError("it has no data.tar")
