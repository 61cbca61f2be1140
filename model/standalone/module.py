"""Reads a module of a package: what it defines at its top level, and what its names stand for."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Symbol(NamedTuple):
    """What a name at the top level of a module stands for."""

    module: str
    name: str  # "" for a module as a whole
    own: bool  # defined in the package, or imported from elsewhere


@dataclass
class Module:
    """A parsed module, in which ``pass`` stands for imports from its package.

    ``definitions`` are its top-level statements by the names that they bind, in order.
    """

    name: str
    text: str
    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, Symbol] = field(default_factory=dict)
    package_imports: list[ast.ImportFrom] = field(default_factory=list)
    future: set[str] = field(default_factory=set)

    @property
    def file(self) -> str:
        """The path of the module, as the package names it."""
        return f"{self.name.replace('.', '/')}.py"

    def stands_for(self, name: str) -> Symbol | None:
        """Return what a global name of the module stands for; None for a builtin."""
        return Symbol(self.name, name, True) if name in self.definitions else self.imports.get(name)


def read_module(root: Path, name: str, text: str, *, is_package: bool) -> Module:
    """Parse a module of the package below ``root``.

    Raises:
        ValueError: it imports a module of its package as a whole, or does something at its top level that cannot be
            moved into another file.
    """
    module = Module(name, text, ast.parse(text))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and _is_of_package(source := _source(node, module, is_package), name):
            module.package_imports.append(node)
            for alias in node.names:
                if alias.name == "*" or _exists(root, f"{source}.{alias.name}"):
                    raise ValueError(f"{module.file}:{node.lineno}: import names of {source}, not modules or *")
                symbol, bound = Symbol(source, alias.name, True), alias.asname or alias.name
                if module.imports.setdefault(bound, symbol) != symbol:
                    raise ValueError(f"{module.file}:{node.lineno}: {bound} is imported twice, as different things")
        elif isinstance(node, ast.Import) and any(_is_of_package(alias.name, name) for alias in node.names):
            raise ValueError(f"{module.file}:{node.lineno}: import names of a module, not the module")
    module.tree = _WithoutPackageImports(module.package_imports).visit(module.tree)
    for statement in _without_type_checking(module.tree.body):
        _enter(module, statement)
    return module


class _WithoutPackageImports(ast.NodeTransformer):
    """Puts ``pass`` in the place of imports from the package, whose names are global in the joined file."""

    def __init__(self, imports: list[ast.ImportFrom]):
        self.imports = imports

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node) if node in self.imports else node


def _enter(module: Module, statement: ast.stmt) -> None:
    """Note what a top-level statement binds."""
    if isinstance(statement, ast.ImportFrom):
        if statement.module == "__future__":
            module.future |= {alias.name for alias in statement.names}
        else:
            for alias in statement.names:
                module.imports[alias.asname or alias.name] = Symbol(statement.module or "", alias.name, False)
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            bound = alias.asname or alias.name.partition(".")[0]
            module.imports[bound] = Symbol(alias.name, "", False)
    elif isinstance(statement, ast.Expr):
        called = statement.value.func if isinstance(statement.value, ast.Call) else None
        is_registration = isinstance(called, ast.Attribute) and called.attr == "register"
        if not isinstance(statement.value, ast.Constant) and not is_registration:
            raise ValueError(f"{module.file}:{statement.lineno}: only definitions and registrations can be joined")
    elif not _is_main_guard(statement):
        for bound in stored_names(statement) - {"__all__"}:
            module.definitions[bound] = statement


def stored_names(node: ast.AST) -> set[str]:
    """Return the names that a statement binds in its own scope."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    names |= {
        value for key in ("name", "rest") if isinstance(value := getattr(node, key, None), str)
    }  # exception handlers, patterns
    if not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for child in ast.iter_child_nodes(node):
            names |= stored_names(child)
    return names


def _without_type_checking(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, and in the place of ``if TYPE_CHECKING`` its imports."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from (inner for inner in statement.body if isinstance(inner, ast.Import | ast.ImportFrom))
        else:
            yield statement


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _source(node: ast.ImportFrom, module: Module, is_package: bool) -> str:
    """Return the absolute name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _is_of_package(source: str, name: str) -> bool:
    return source.partition(".")[0] == name.partition(".")[0]


def _exists(root: Path, name: str) -> bool:
    path = root / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()
