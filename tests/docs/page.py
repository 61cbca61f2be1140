"""What the commands of one document share: a sandbox to work in, and what earlier commands have made."""

import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.docs.parsing import require
from training.config.run import RunConfig, load_config


@functools.cache
def configs_of(root: Path) -> tuple[RunConfig, ...]:
    """The configurations in ``configs/``."""
    return tuple(load_config(file) for file in sorted((root / "configs").glob("*.yaml")))


@functools.cache
def dockerfile(root: Path) -> tuple[tuple[str, ...], ...]:
    """Instructions of the Dockerfile as words, lines joined, without comments."""
    lines = (root / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return tuple(tuple(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip())


class Page:
    """A document in whose order commands are checked: what one makes, a later one may use.

    Args:
        root: the project.
        sandbox: an empty folder, the current one while commands are checked; it is made to look like the project.
        in_order: whether readers run the commands one after another; otherwise each stands alone.
        check: checks the words of a command on this page, for commands that start others.
    """

    def __init__(
        self, root: Path, sandbox: Path, *, in_order: bool, check: Callable[["Page", list[str]], None]
    ) -> None:
        self.root, self.sandbox, self.in_order = root, sandbox, in_order
        self.trained: dict[str, RunConfig] = {}
        self.studied: dict[Path, RunConfig] = {}  # runs of the page's studies, by folder
        self.images: set[str] = set()
        self._check = check
        for entry in root.iterdir():
            if entry.name in ("configs", "launch"):  # copied, since a command may copy into them
                shutil.copytree(entry, sandbox / entry.name)
            elif entry.name not in ("runs", ".git"):
                (sandbox / entry.name).symlink_to(entry)

    def check(self, words: list[str]) -> None:
        """Check a command that another one starts."""
        self._check(self, words)

    def start_run(self, config: RunConfig) -> None:
        """Note that a command trains a new run, whose folder must not be there yet."""
        name = config.training.name
        require(
            not self.in_order or name not in self.trained,
            f"training.name = {name}: an earlier command of this page has trained it; add --resume or another name",
        )
        self.trained[name] = config

    def run(self, folder: str) -> RunConfig:
        """The configuration of the run in ``runs/NAME``, of an earlier command, a study or ``configs/``."""
        path = Path(folder)
        if path in self.studied:
            return self.studied[path]
        require(path.parent == Path("runs"), f"{folder}: not the folder of a run, runs/NAME")
        known = {config.training.name: config for config in configs_of(self.root)} | self.trained
        require(path.name in known, f"{folder}: no config and no command of this page trains it")
        return known[path.name]

    def config_file(self, file: str) -> str:
        """The file; the ``config.yaml`` of a run is made first."""
        match = re.fullmatch(r"runs/([^/]+)/config\.yaml", file)
        if match:
            config = self.run(f"runs/{match[1]}")
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
        return file
