"""Checks commands of other projects: an explicit list, and what is checked of each."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.docs.commands import ASSIGNMENT
from tests.docs.page import Page, dockerfile
from tests.docs.parsing import require, unknown

DOCKER_OPTIONS = ("--gpus", "--ipc", "--ulimit", "--volume", "--shm-size", "--network", "--device", "--user", "--tmpfs")
DOCKER_FLAGS = ("--rm", "-it", "--read-only")
CHECKERS = ("ruff", "mypy", "codespell", "shellcheck", "hadolint")


def check_docker(page: Page, arguments: list[str]) -> None:
    """``docker build``: its arguments are declared. ``docker run``: the command, in the image, per number of GPUs."""
    verb, *rest = arguments or [""]
    if verb == "build":
        return _check_docker_build(page, rest)
    if verb != "run":
        raise unknown(f"docker {verb}")
    gpus = None
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in DOCKER_FLAGS:
            continue
        if option not in DOCKER_OPTIONS:
            raise unknown(f"docker run {option}")
        value = value if equals else rest.pop(0)
        gpus = value if option == "--gpus" else gpus
    require(rest, "docker run needs an image")
    image, *command = rest
    require(image in page.images, f"no earlier command of this page builds the image {image}")
    copied = {source for words in dockerfile(page.root) if words[0] == "COPY" for source in words[1:-1]} | {"runs"}
    for before, word in zip(["", *command], command, strict=False):
        top = word.partition(".")[0] if before == "-m" else word.partition("/")[0]
        require(not (page.root / top).exists() or top in copied, f"{word} is not in the image")
    if command[:1] == ["deepspeed"] and gpus != "all" and "--num_gpus" not in command:
        command[1:1] = ["--num_gpus", gpus or "1"]
    return page.check(command)


def _check_docker_build(page: Page, arguments: list[str]) -> None:
    declared = {words[1].partition("=")[0] for words in dockerfile(page.root) if words[0] == "ARG"}
    tag = None
    while arguments and arguments[0] in ("-t", "--build-arg"):
        option, value, *arguments = arguments
        name = value.partition("=")[0]
        tag = value if option == "-t" else tag
        require(option == "-t" or name in declared, f"--build-arg {name}: the Dockerfile declares no such argument")
    require(tag and arguments == ["."], "docker build takes -t NAME and the folder of the Dockerfile")
    page.images.add(str(tag))


def check_source(page: Page, arguments: list[str]) -> None:
    """The virtual environment, or the script that makes it."""
    if arguments[:1] == ["launch/setup.sh"]:
        require(len(arguments) > 1, "launch/setup.sh takes files of requirements")
        for file in arguments[1:]:
            require(Path(file).is_file(), f"{file}: no such file")
    elif arguments != [".venv/bin/activate"]:
        raise unknown(f"source {' '.join(arguments)}")


def check_pip(page: Page, arguments: list[str]) -> None:
    """Files of requirements exist."""
    if arguments[:1] != ["install"]:
        raise unknown(f"pip {' '.join(arguments)}")
    for option, file in zip(arguments, [*arguments[1:], ""], strict=True):
        require(option != "-r" or Path(file).is_file(), f"{file}: no such file")


def check_copy(page: Page, arguments: list[str]) -> None:
    """The file exists; it is copied, for the commands that follow."""
    require(len(arguments) == 2, "cannot be checked: cp of other than one file; teach tests/docs")
    require(Path(arguments[0]).is_file(), f"{arguments[0]}: no such file")
    shutil.copyfile(*arguments)


def check_touch(page: Page, arguments: list[str]) -> None:
    """A stop file, in the folder of a run."""
    if len(arguments) != 1 or Path(arguments[0]).name != "stop":
        raise unknown(f"touch {' '.join(arguments)}")
    page.run(str(Path(arguments[0]).parent))


def check_tensorboard(page: Page, arguments: list[str]) -> None:
    """Shows the folder of the runs."""
    folder, *rest = arguments[1:] or [""]
    require(arguments[:1] == ["--logdir"] and folder.partition("/")[0] == "runs", "tensorboard shows --logdir runs")
    samples = [pair.partition("=") for pair in rest[1].split(",")] if rest[:1] == ["--samples_per_plugin"] else []
    require(len(rest) == 2 * bool(samples), f"tensorboard takes --samples_per_plugin, not {' '.join(rest)}")
    for plugin, _, count in samples:
        known = plugin in ("scalars", "images", "text", "histograms") and count.isdigit() and int(count) > 0
        require(known, f"--samples_per_plugin {plugin}={count}")


def check_export(page: Page, arguments: list[str]) -> None:
    """Environment variables."""
    require(all(ASSIGNMENT.match(word) for word in arguments), "export takes NAME=value")


def check_pre_commit(page: Page, arguments: list[str]) -> None:
    """Its configuration exists."""
    require(Path(".pre-commit-config.yaml").is_file(), "there is no .pre-commit-config.yaml")
    if arguments[:1] not in (["install"], ["run"]):
        raise unknown(f"pre-commit {' '.join(arguments)}")


def check_checker(page: Page, arguments: list[str]) -> None:
    """A tool of ``launch/lint.sh``: named paths exist."""
    for word in arguments:
        require("/" not in word or Path(word).exists(), f"{word}: no such file")


def check_git(page: Page, arguments: list[str]) -> None:
    """A few commands that need no repository of ours to be looked at."""
    if arguments[:1] not in (["clone"], ["stash"], ["switch"], ["checkout"], ["diff"], ["log"], ["worktree"]):
        raise unknown(f"git {' '.join(arguments)}")


def check_apt_get(page: Page, arguments: list[str]) -> None:
    """Installs packages."""
    if not re.fullmatch(r"(install|update)( [a-z0-9.+-]+)*", " ".join(arguments)):
        raise unknown(f"apt-get {' '.join(arguments)}")


def check_mkdir(page: Page, arguments: list[str]) -> None:
    """Folders of the page, which are made: later commands write to them."""
    folders = [word for word in arguments if word != "-p"]
    require(folders and not any(word.startswith("-") for word in folders), "needs folders, and no option but -p")
    for folder in folders:
        if not Path(folder).is_absolute():
            Path(folder).mkdir(parents=True, exist_ok=True)


def check_system(page: Page, arguments: list[str]) -> None:
    """``chown``, ``kill``: nothing of this project's."""
    require(arguments, "needs arguments")


OTHER_COMMANDS: dict[str, Callable[[Page, list[str]], None]] = {
    "docker": check_docker,
    "source": check_source,
    "pip": check_pip,
    "cp": check_copy,
    "touch": check_touch,
    "mkdir": check_mkdir,
    "tensorboard": check_tensorboard,
    "export": check_export,
    "pre-commit": check_pre_commit,
    "git": check_git,
    "apt-get": check_apt_get,
    **dict.fromkeys(CHECKERS, check_checker),
    **dict.fromkeys(("chown", "kill"), check_system),
}
