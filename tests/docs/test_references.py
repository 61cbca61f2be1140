"""What documents name exists: links, paths, config keys, YAML, and everything that the image needs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.project import ROOT
from tests.docs.commands import CODE_SPAN, FENCE, without_fences
from tests.docs.page import dockerfile
from training.config.run import SECTIONS, validate

PATTERNS = ("*.md", "docs/**/*.md", "benchmarks/*.md", "tests/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
KEY = re.compile(rf"({'|'.join(SECTIONS)})\.([a-z_]+)(?:[=:].*)?")
IMAGE_PROGRAMS = (
    "train.py", "convert.py", "evaluate.py", "plan.py", "data/prepare.py", "data/tasks/__main__.py",
    "studies/stability/__main__.py", "studies/z_loss_sweep.py", "studies/routing/__main__.py",
)  # fmt: skip


def spans(page: Path) -> list[str]:
    """Inline code of a page, but for the paths of the past that the changelog lists."""
    text = without_fences(page.read_text("utf-8")).partition("### New paths")[0]
    return [" ".join(match[2].split()) for match in CODE_SPAN.finditer(text)]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text("utf-8"))):
        path, _, fragment = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_config_keys_exist(page: Path):
    for span in spans(page):
        match = KEY.fullmatch(span)
        if match and not span.endswith(".py"):
            section, name = match.groups()
            is_program = (ROOT / section / f"{name}.py").exists()
            assert name in SECTIONS[section].model_fields or is_program, f"{page.name}: {span} is no key"


def test_paths_exist():
    entries = {entry.name for entry in ROOT.iterdir()} - {"runs", "CHANGELOG.md"}
    path = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # names the past too
            continue
        for span in spans(page):
            if path.fullmatch(span) and "/" in span and span.split("/")[0] in entries:
                assert (ROOT / span).exists() or (page.parent / span).exists(), f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_blocks_are_valid_sections(page: Path) -> None:
    tiny: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text("utf-8"))
    for block in FENCE.finditer(page.read_text("utf-8")):
        if block[1] == "yaml":
            for section, values in yaml.safe_load(block[2]).items():
                validate(tiny | {section: tiny[section] | values})


def imported(file: Path, seen: set[Path]) -> set[Path]:
    """The project's files that a program imports, itself first."""
    if file in seen or not file.is_file():
        return seen
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT / name.replace(".", "/")
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                imported(candidate, seen)
    return seen


def test_the_image_holds_what_its_programs_import() -> None:
    copied = {source for words in dockerfile(ROOT) if words[0] == "COPY" for source in words[1:-1]}
    needed: set[Path] = set()
    for program in IMAGE_PROGRAMS:
        imported(ROOT / program, needed)
    rooms = {file.relative_to(ROOT).parts[0] for file in needed}
    assert {"model", "training", "common"} <= rooms
    assert rooms <= copied
