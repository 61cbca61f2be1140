"""The domains by name. Adding one is one entry here, with a reader of its archive."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.archives.download import Archive
from data.preparation.domains import readers
from data.preparation.domains.sword import sword_units
from data.preparation.domains.units import Unit
from data.preparation.fetch import WIKIPEDIA

# Families of licences that a user has to accept: what the text obliges to.
CONSENTS = {
    "gpl": "GNU GPL: who passes the text on, in a prepared folder too, passes it on under the GPL",
}


class Domain(NamedTuple):
    """Text of one kind.

    Args:
        archive: that holds it.
        licence: of the text.
        read: archive's path → units of documents.
        consent: family of licences to accept before it is fetched, a key of ``CONSENTS``; None: none.
    """

    archive: Archive
    licence: str
    read: Callable[[Path], list[Unit]]
    consent: str | None = None


def _sword(package: str, sha256: str, megabytes: float, driver: str) -> Domain:
    return Domain(Archive("apt", package, sha256, megabytes), "public domain", partial(sword_units, driver=driver))


def _wikipedia(language: str) -> Domain:
    licence = "CC BY-SA 4.0 (Wikipedia contributors); package GPL-3, only its text file is read"
    return Domain(WIKIPEDIA, licence, partial(readers.wikipedia_units, language=language))


DOMAINS = {
    "wiki_en": _wikipedia("en-us"),
    "wiki_fr": _wikipedia("fr-fr"),
    "wiki_es": _wikipedia("es-es"),
    "code": Domain(
        Archive("pip", "sympy==1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5", 6.3),
        "BSD-3-Clause (SymPy development team)",
        readers.code_units,
    ),
    "math": Domain(
        Archive(
            "apt",
            "metamath-databases=0.0.0~20210101.git55fe226-2",
            "c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
            12.8,
        ),
        "CC0 1.0",
        readers.metamath_units,
    ),
    "bible_en": _sword(
        "sword-text-kjv=14.3-1", "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57", 2.8, "zText"
    ),
    "bible_es": _sword(
        "sword-text-sparv=2.60-1", "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf", 2.7, "zText"
    ),
    "spurgeon": _sword(
        "sword-comm-tdavid=2.1-1", "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f", 5.1, "zText4"
    ),
    "henry": _sword(
        "sword-comm-mhcc=2.0-1", "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35", 1.8, "zText"
    ),
    "afaq": Domain(
        Archive(
            "apt", "anarchism=15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948", 6.9
        ),
        "GPL-2 (The Anarchist FAQ Editorial Collective)",
        readers.afaq_units,
        "gpl",
    ),
    "gcide": Domain(
        Archive(
            "apt", "dict-gcide=0.48.5+nmu2", "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f", 14.8
        ),
        "GPL-2 or later (GNU Collaborative International Dictionary of English)",
        readers.gcide_units,
        "gpl",
    ),
}  # fmt: skip


def choose_domains(names: Sequence[str] | None, accepted: Sequence[str]) -> list[str]:
    """Return names of domains, each once: the given ones, or all that need no consent beyond ``accepted``.

    Raises:
        ValueError: no such domain or family of licences, or a domain whose licence was not accepted.
    """
    for family in accepted:
        if family not in CONSENTS:
            raise ValueError(f"--accept-licenses {family}: there is {', '.join(CONSENTS)} to accept")
    allowed = [name for name, domain in DOMAINS.items() if domain.consent is None or domain.consent in accepted]
    if names is None:
        return allowed
    for name in names:
        if name not in DOMAINS:
            near = difflib.get_close_matches(name, DOMAINS, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}? All: " if near else "there are "
            raise ValueError(f"--domains {name} is not a domain: {hint}{', '.join(DOMAINS)}")
        if name not in allowed:
            family = DOMAINS[name].consent or ""
            raise ValueError(f"--domains {name} needs --accept-licenses {family} ({CONSENTS[family]})")
    return list(dict.fromkeys(names))
