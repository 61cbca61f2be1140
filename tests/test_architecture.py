"""The law of imports, and the size of packages. ``pytest -s`` prints who may import whom, and who does.

Imports go down only: among the rooms, among the sub-packages of a room, and among modules, imports inside functions
included.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.project import ROOT

# What each room may import, besides itself. Entries may import everything.
ROOMS: dict[str, tuple[str, ...]] = {
    "common": (),
    "model": (),
    "data": ("common",),
    "optim": ("common",),
    "parallel": ("common", "model"),
    "training": ("common", "model", "data", "optim", "parallel"),
    "studies": ("common", "training", "model", "data"),
}
ENTRIES = ("train", "convert", "fill", "evaluate", "plan", "benchmarks")
# The packages of a room, lowest first; a package imports only those before it. ``.`` stands for the room's own modules,
# which are free of circles as all modules are.
PACKAGES: dict[str, tuple[str, ...]] = {
    "data": ("archives", "sources", "preparation", "tasks", "objectives", "streaming"),
    "model": ("standalone", "kernels", "draws", "layers", "moe"),
    "optim": ("moments",),
    "training": (
        "config",
        "planning.kept",
        "planning",
        "run",
        "engine",
        "monitoring",
        "checkpoint.store",
        "checkpoint.optimizer_state",
        "checkpoint",
        "export",
        "tasks",
        "health",
        "report",
        "dry_run",
    ),
    "studies": ("runner", "results", "stability", "design_space", "finetuning", "routing", "round_off"),
}
# Modules of a room that its packages may import: the foundations. All others lie above the packages.
FOUNDATIONS: dict[str, tuple[str, ...]] = {
    "data": ("config", "file_names", "hugging_face", "span_corruption", "task_config", "tokenizer"),
    "model": ("architecture", "capacity", "config", "losses"),
    "optim": ("parameter", "partition"),
    "training": (),
    "studies": ("plots",),
}
MOST_MODULES = 12


def python_files() -> list[Path]:
    """All tracked modules of the product."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(line) for line in listed.stdout.splitlines() if not line.startswith("tests/")]
    return [file for file in files if (ROOT / file).exists()]


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module → the project's modules that it imports."""
    names = {module_name(file): file for file in python_files()}
    return {
        name: {found for found in imported((ROOT / file).read_text(encoding="utf-8")) if found in names} - {name}
        for name, file in names.items()
    }


def package_of(module: str) -> str | None:
    """The package of a room that a module is in, as ``PACKAGES`` names it; None for the room's own modules."""
    room, _, rest = module.partition(".")
    found = [p for p in PACKAGES.get(room, ()) if rest == p or rest.startswith(f"{p}.")]
    return max(found, key=len, default=None)


def broken_rules(imports: dict[str, set[str]]) -> list[str]:
    broken = []
    for module, targets in imports.items():
        room = module.partition(".")[0]
        for target in sorted(targets):
            other = target.partition(".")[0]
            if room != other:
                if room in ROOMS and other not in ROOMS[room]:
                    broken.append(f"{module} imports {target}: {room} may import {', '.join(ROOMS[room]) or 'nothing'}")
                continue
            own, theirs = package_of(module), package_of(target)
            if own is None or own == theirs or target == room:
                continue
            if theirs is None:
                if target.partition(".")[2] not in FOUNDATIONS[room]:
                    broken.append(f"{module} imports {target}, which lies above the packages of {room}")
            elif PACKAGES[room].index(theirs) > PACKAGES[room].index(own):
                broken.append(f"{module} imports {target}: {room}.{theirs} lies above {room}.{own}")
    return broken


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Circles among modules, each once."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(imports[module]):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return found


def level_sizes() -> dict[str, int]:
    """Folder → its modules, ``__init__`` not counted."""
    sizes: dict[str, int] = {}
    for file in python_files():
        if file.name != "__init__.py":
            sizes[str(file.parent)] = sizes.get(str(file.parent), 0) + 1
    return sizes


def node_of(module: str) -> str:
    """The room, or the package of a room, that a module is in."""
    room, package = module.partition(".")[0], package_of(module)
    return f"{room}.{package}" if package else room


def test_imports_go_down_only(imports: dict[str, set[str]]):
    used: dict[str, set[str]] = {}
    for module, targets in imports.items():
        used.setdefault(node_of(module), set()).update(map(node_of, targets))
    print("\nwho may import whom (rooms): entries →", ", ".join(ROOMS))
    for room, below in ROOMS.items():
        print(f"  {room:<10} may import {', '.join(below) or 'nothing'}")
        for package in PACKAGES.get(room, ()):
            lower = PACKAGES[room][: PACKAGES[room].index(package)]
            print(f"    .{package:<28} may import {', '.join([*FOUNDATIONS[room], *lower]) or 'no other package'}")
    print("who imports whom:")
    for node in sorted(used):
        print(f"  {node:<36} {', '.join(sorted(used[node] - {node})) or '-'}")
    assert broken_rules(imports) == []


def test_the_model_needs_no_deepspeed_and_data_no_torch():
    never = {"model": {"deepspeed"}, "data": {"torch", "deepspeed"}, "common": {"torch", "deepspeed", "transformers"}}
    for file in python_files():
        found = {name.partition(".")[0] for name in imported((ROOT / file).read_text(encoding="utf-8"))}
        assert not found & never.get(file.parts[0], set()), file


def test_no_circle_among_modules(imports: dict[str, set[str]]):
    assert circles(imports) == []


def test_no_level_has_too_many_modules():
    sizes = level_sizes()
    largest = max(sizes, key=lambda folder: sizes[folder])
    print(f"\nlargest level: {largest}/ with {sizes[largest]} modules")
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize(
    ("module", "target", "words"),
    [
        ("model.layers.norm", "common.files", "model may import nothing"),
        ("data.config", "model.config", "data may import common"),
        ("training.trainer", "studies.plots", "training may import"),
        ("training.config.run", "training.run.lock", "training.run lies above training.config"),
        ("training.engine.step", "training.trainer", "above the packages of training"),
        ("data.sources.files", "data.streaming.stream", "data.streaming lies above data.sources"),
    ],
)
def test_an_import_upward_is_found(imports: dict[str, set[str]], module: str, target: str, words: str):
    assert {module, target} <= imports.keys(), "the example must exist"
    (broken,) = broken_rules(imports | {module: imports[module] | {target}})
    assert broken.startswith(f"{module} imports {target}")
    assert words in broken


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
