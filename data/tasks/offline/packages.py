"""synopsis: the line that sums up a Debian package, from its long description. apt-get checks the lists' signatures."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from data.archives.download import ADVICE, private_apt
from data.sources.retry import DataError
from data.tasks.offline.splits import Splits, split_rows
from data.tasks.sources.base import Row

TEST_ROWS, VALIDATION_ROWS = 1000, 500
APT_HELPER = "/usr/lib/apt/apt-helper"


def fetch_lists(folder: Path) -> Path:
    """Return a folder with the lists of packages and their English descriptions; download them unless they are there.

    Raises:
        DataError: apt-get is missing or fails.
    """
    lists = folder / "apt" / "lists"
    if not list(lists.glob("*_i18n_Translation-en*")):
        _run([*private_apt(folder / "apt", ("en",)), "-qq", "update"])
    if not list(lists.glob("*_i18n_Translation-en*")):
        raise DataError(f"apt-get gave no list of English descriptions: {ADVICE['apt']}")
    return lists


def lists_hash(lists: Path) -> str:
    """Return the SHA-256 of the descriptions: they change with each release of Debian."""
    return hashlib.sha256("\n".join(_texts(lists, "i18n_Translation-en")).encode()).hexdigest()


def synopsis_rows(lists: Path) -> Splits:
    """Return a row per package, each description once; packages of one source stay in one split."""
    sources = {
        fields["Package"]: fields.get("Source", fields["Package"]).split(" ")[0]
        for text in _texts(lists, "binary-*_Packages")
        for fields in _paragraphs(text)
    }
    rows: dict[str, Row] = {}
    for text in _texts(lists, "i18n_Translation-en"):
        for fields in _paragraphs(text):
            synopsis, _, long = fields["Description-en"].partition("\n")
            description = " ".join(line for line in map(str.strip, long.split("\n")) if line not in ("", "."))
            if description:
                name = fields["Package"]
                row = {"package": name, "source": sources.get(name, name), "description": description}
                rows.setdefault(description, {**row, "synopsis": synopsis})
    return split_rows(list(rows.values()), lambda row: str(row["source"]), TEST_ROWS, VALIDATION_ROWS)


def _texts(lists: Path, ending: str) -> Iterator[str]:
    """Yield the lists whose names end so, of whatever compression, in the order of their names."""
    files = sorted(file for file in lists.glob(f"*_{ending}*") if file.is_file())
    for file in files:
        yield _run([APT_HELPER, "cat-file", str(file)])


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of the paragraphs of a control file; a line that begins with a blank continues a field."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line.startswith(" ") and name:
                fields[name] += f"\n{line[1:]}"
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def _run(command: list[str]) -> str:
    try:
        # S603: no shell, and no word of the command is a user's but the folder.
        result = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
    except FileNotFoundError:
        raise DataError(
            f"this machine has no {command[0]}: prepare the task on Debian or Ubuntu, copy the folder"
        ) from None
    if result.returncode:
        lines = [line.strip() for line in result.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise DataError(f"{command[0]} fails: {(lines or ['no reason given'])[0]}: {ADVICE['apt']}")
    return result.stdout.decode("utf-8", errors="replace")
