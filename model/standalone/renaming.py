"""The source of a top-level statement, with its comments and with other global names."""

import ast
import re
from collections.abc import Iterator, Sequence

from model.standalone.module import Module, stored_names

Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def renamed_source(module: Module, statement: ast.stmt, renames: dict[str, str]) -> str:
    """Return the source of a statement, comments above it included, with global names changed.

    Imports from the package inside it become ``pass``: the names are global in the joined file.
    """
    lines = module.text.splitlines()
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    last = statement.end_lineno or statement.lineno
    changed = {number: lines[number - 1].encode() for number in range(first, last + 1)}  # positions count bytes
    inner = [node for node in module.package_imports if statement.lineno <= node.lineno <= last]
    uses = sorted(_uses(statement, frozenset(), renames), key=lambda node: (-node.lineno, -node.col_offset))
    if any(changed[n.lineno][n.col_offset : n.end_col_offset] != n.id.encode() for n in uses):
        for node in uses:  # before Python 3.12, names in f-strings have no position: comments are lost
            node.id = renames[node.id]
        return ast.unparse(statement)
    for node in uses:
        line = changed[node.lineno]
        changed[node.lineno] = line[: node.col_offset] + renames[node.id].encode() + line[node.end_col_offset :]
    for old in stored_names(statement) & renames.keys():
        if isinstance(statement, Function | ast.ClassDef):
            definition = re.compile(rf"\b(def|class)(\s+){old}\b".encode())
            changed[statement.lineno] = definition.sub(
                rf"\1\2{renames[old]}".encode(), changed[statement.lineno], count=1
            )
    for removed in inner:
        changed[removed.lineno] = b" " * removed.col_offset + b"pass"
        for number in range(removed.lineno + 1, (removed.end_lineno or removed.lineno) + 1):
            del changed[number]
    return "\n".join(line.decode() for line in changed.values())


def annotation_names(statement: ast.stmt) -> set[str]:
    """Return the names in quoted annotations."""
    names = set()
    for node in ast.walk(statement):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    names |= set(re.findall(r"[^\W\d]\w*", part.value))
    return names


def _uses(node: ast.AST, hidden: frozenset[str], renames: dict[str, str]) -> Iterator[ast.Name]:
    """Yield where ``node`` uses a global name that is changed; ``hidden`` are names of inner scopes."""
    if isinstance(node, ast.Name):
        if node.id in renames and node.id not in hidden:
            yield node
    elif isinstance(node, Function | ast.Lambda):
        outside = [*getattr(node, "decorator_list", []), *node.args.defaults, *node.args.kw_defaults]
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        outside += [argument.annotation for argument in arguments if argument is not None]
        body: Sequence[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else node.body
        outside += [] if isinstance(node, ast.Lambda) else [node.returns]
        local = {argument.arg for argument in arguments if argument is not None}
        local |= set().union(*(stored_names(part) for part in body)) - _declared_global(body)
        for part in outside:
            if part is not None:
                yield from _uses(part, hidden, renames)
        for part in body:
            yield from _uses(part, hidden | local, renames)
    elif isinstance(node, ast.ClassDef):
        for part in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            yield from _uses(part, hidden, renames)
        own = set().union(*(stored_names(part) for part in node.body))
        for part in node.body:  # the names of a class are not seen by its methods
            inner = isinstance(part, Function)
            yield from _uses(part, hidden if inner else hidden | own, renames)
    elif isinstance(node, COMPREHENSIONS):
        local = set().union(*(stored_names(generator.target) for generator in node.generators))
        for child in ast.iter_child_nodes(node):
            yield from _uses(child, hidden | local, renames)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _uses(child, hidden, renames)


def _declared_global(body: Sequence[ast.AST]) -> set[str]:
    names = [node.names for part in body for node in ast.walk(part) if isinstance(node, ast.Global)]
    return set().union(*names)
