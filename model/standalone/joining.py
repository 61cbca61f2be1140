"""Joins modules of a package to one file that imports nothing of the package.

Modules come in the order of their imports, and of each what the roots need, with its comments. Names that stand for
different things in two modules are changed. The source is read, not imported or run.
"""

import ast
import builtins
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from model.standalone.module import Module, Symbol, read_module
from model.standalone.renaming import annotation_names, renamed_source

Names = dict[Symbol, str]


def join(root: Path, entry: str, roots: Iterable[str], *, replaced: Mapping[str, str], header: str) -> str:
    """Return one file with everything that ``roots`` need.

    Args:
        root: the folder that holds the package.
        entry: module that ``roots`` are names of.
        roots: names to be defined in the file under the same names.
        replaced: modules, and those whose source takes their place.
        header: text at the top: a docstring.

    Raises:
        ValueError: the modules cannot be joined; names file and line.
    """
    modules: dict[str, Module] = {}
    _read(root, entry, replaced, modules, [])
    wanted = [_resolved(modules, _found(modules[entry], name)) for name in roots]
    needed = _needed(modules, wanted)
    names = _final_names(modules, needed, wanted)
    imports = [(symbol, name) for symbol, name in names.items() if not symbol.own]
    future = sorted(set().union(*(module.future for module in modules.values())))
    parts = [header, *([f"from __future__ import {', '.join(future)}\n"] if future else []), _imports(imports)]
    for module in modules.values():
        local = {
            name: final
            for name in (*module.definitions, *module.imports)
            if (final := names.get(_resolved(modules, _found(module, name)))) is not None
        }
        kept = {id(module.definitions[s.name]) for s in needed if s.own and s.module == module.name}
        statements = [statement for statement in module.tree.body if id(statement) in kept]
        if statements:
            parts.append(_section(module, statements, {a: b for a, b in local.items() if a != b}))
    text = "\n".join(parts)
    compile(text, "joined", "exec")
    return text


def _read(root: Path, name: str, replaced: Mapping[str, str], modules: dict[str, Module], path: list[str]) -> None:
    """Read a module after those that it imports."""
    if name in modules:
        return
    if name in path:
        raise ValueError(f"{name} imports itself by way of {', '.join(path[path.index(name) :])}")
    file = root / replaced.get(name, name).replace(".", "/")
    is_package = file.is_dir()
    file = file / "__init__.py" if is_package else file.with_suffix(".py")
    module = read_module(root, name, file.read_text(encoding="utf-8"), is_package=is_package)
    for symbol in module.imports.values():
        if symbol.own:
            _read(root, symbol.module, replaced, modules, [*path, name])
    modules[name] = module


def _found(module: Module, name: str) -> Symbol:
    symbol = module.stands_for(name)
    if symbol is None:
        raise ValueError(f"{module.file} does not define {name}")
    return symbol


def _resolved(modules: dict[str, Module], symbol: Symbol) -> Symbol:
    """Follow a name that a module imports only to pass it on."""
    while symbol.own and symbol.name not in modules[symbol.module].definitions:
        symbol = _found(modules[symbol.module], symbol.name)
    return symbol


def _needed(modules: dict[str, Module], wanted: list[Symbol]) -> list[Symbol]:
    """Return what the definitions of ``wanted`` refer to, directly or not, in the order of the modules."""
    needed: set[Symbol] = set()
    stack = list(wanted)
    while stack:
        symbol = stack.pop()
        if symbol in needed:
            continue
        needed.add(symbol)
        if symbol.own:
            module = modules[symbol.module]
            statement = module.definitions[symbol.name]
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)} | annotation_names(statement)
            found = (module.stands_for(name) for name in used)
            stack += [_resolved(modules, other) for other in found if other is not None]
            # A statement may bind several names.
            stack += [Symbol(module.name, n, True) for n, other in module.definitions.items() if other is statement]
    order = [Symbol(m.name, name, True) for m in modules.values() for name in m.definitions]
    return [symbol for symbol in order if symbol in needed] + sorted(symbol for symbol in needed if not symbol.own)


def _final_names(modules: dict[str, Module], needed: list[Symbol], wanted: list[Symbol]) -> Names:
    """Give each symbol a name of its own: that of its module where it is free, the roots first."""
    local: dict[Symbol, list[tuple[Module, str]]] = {symbol: [] for symbol in needed}
    for module in modules.values():
        for name in (*module.definitions, *module.imports):
            symbol = _resolved(modules, _found(module, name))
            if symbol in local:
                local[symbol].append((module, name))
    identifiers = {name: _identifiers(module.tree) for name, module in modules.items()}
    taken: set[str] = set(dir(builtins))
    names: Names = {}
    for symbol in [*wanted, *(symbol for symbol in needed if symbol not in wanted)]:
        for candidate in _candidates(symbol, local[symbol][0][1]):
            others = (identifiers[module.name] for module, name in local[symbol] if name != candidate)
            if candidate not in taken and not any(candidate in known for known in others):
                names[symbol] = candidate
                taken.add(candidate)
                break
    return names


def _identifiers(tree: ast.Module) -> set[str]:
    """Return every name in a module, so that a changed one never means something else in an inner scope."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def _candidates(symbol: Symbol, name: str) -> Iterator[str]:
    yield name
    parts = symbol.module.split(".")
    for start in range(len(parts) - 1, -1, -1):
        prefix = "_".join(part.lstrip("_") for part in parts[start:])
        bare = name.lstrip("_")
        yield "_" * (len(name) - len(bare)) + (f"{prefix.upper()}_{bare}" if bare.isupper() else f"{prefix}_{bare}")
    yield from (f"{name}_{number}" for number in range(2, 1000))


def _imports(imports: list[tuple[Symbol, str]]) -> str:
    """Return the import statements of the file, one for each module."""
    lines: list[str] = []
    from_modules: dict[str, list[str]] = {}
    for symbol, name in imports:
        if symbol.name:
            alias = "" if symbol.name == name else f" as {name}"
            from_modules.setdefault(symbol.module, []).append(f"{symbol.name}{alias}")
        else:
            plain = name == symbol.module.partition(".")[0]
            lines.append(f"import {symbol.module}" + ("" if plain else f" as {name}"))
    lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(from_modules.items())]
    return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line))) + "\n"


def _section(module: Module, statements: list[ast.stmt], renames: dict[str, str]) -> str:
    """Return the kept statements of a module below its docstring, as a comment."""
    title = f"# {'-' * 10} {module.file} "
    lines = [title + "-" * (120 - len(title))]
    lines += [f"# {line}".rstrip() for line in (ast.get_docstring(module.tree) or "").splitlines()]
    text = "\n".join(lines) + "\n\n"
    for before, statement in zip([None, *statements], statements, strict=False):
        plain = isinstance(statement, ast.Assign | ast.AnnAssign)
        gap = "" if before is None or (plain and isinstance(before, ast.Assign | ast.AnnAssign)) else "\n\n"
        text += f"{gap}{renamed_source(module, statement, renames)}\n"
    return f"\n{text}"
