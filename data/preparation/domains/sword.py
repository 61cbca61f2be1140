"""Bible texts and commentaries of the SWORD project's modules: verses in zlib blocks, with OSIS markup.

A module has, per testament, three files whose names end in ``zs`` (blocks: offset, size and size when expanded), ``zz``
(the blocks) and ``zv`` (verses: block, start, size). The letter before it says what a block is: a book or a chapter.
"""

import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from data.archives.debian import read_deb
from data.preparation.domains.units import Unit, alone, join_parts

BLOCK = struct.Struct("<III")
# The driver zText has 16 bits for the size of a verse; zCom4 and zText4 have 32.
VERSES = {"zText": struct.Struct("<IIH"), "zText4": struct.Struct("<III")}

NOTE = re.compile(r"<note\b.*?</note>", re.DOTALL)
LINE_BREAK = re.compile(r"</?(?:div|title|row|table|item|list|lg?|lb|chapter)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
BLANKS = re.compile(r"[^\S\n]+")
LINES = re.compile(r" ?\n[ \n]*")


def sword_units(path: Path, driver: str) -> list[Unit]:
    """Return the text of a module in documents of consecutive verses or paragraphs, one document per unit.

    Args:
        path: Debian package of the module.
        driver: how its verses are stored, a key of ``VERSES``.

    Raises:
        ValueError: the package has no such module.
    """
    files = read_deb(path, lambda name: "/sword/modules/" in name)
    verses: list[str] = []
    for testament in "on":  # old and new
        index = next((name for name in files if re.search(rf"/{testament}t\.[a-z]zs$", name)), None)
        if index is None:
            raise ValueError(f"{path} is no module of SWORD: it has no file {testament}t.?zs")
        stem = index[:-1]
        blocks = _blocks(files[index], files[f"{stem}z"])
        verses += (plain_text(verse) for verse in _verses(files[f"{stem}v"], blocks, VERSES[driver]))
    return alone(join_parts(part for verse in verses for part in verse.split("\n")))


def _blocks(index: bytes, compressed: bytes) -> list[bytes]:
    return [
        zlib.decompress(compressed[offset : offset + size]) if size else b""
        for offset, size, _ in BLOCK.iter_unpack(index)
    ]


def _verses(index: bytes, blocks: list[bytes], entry: struct.Struct) -> Iterator[str]:
    """Yield the marked-up text of each verse; a comment on several verses once."""
    places = ((block, start, size) for block, start, size in entry.iter_unpack(index) if size)
    for block, start, size in dict.fromkeys(places):
        yield blocks[block][start : start + size].decode("utf-8")


def plain_text(markup: str) -> str:
    """Return OSIS markup as plain text: footnotes go, paragraphs and titles become lines."""
    text = LINE_BREAK.sub("\n", NOTE.sub("", markup))
    text = html.unescape(TAG.sub("", text.replace("</cell>", " ")))
    return LINES.sub("\n", BLANKS.sub(" ", text)).strip()
