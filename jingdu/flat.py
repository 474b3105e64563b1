"""A paper's module as one page: what it imports from other papers stands in it, marked with where it comes from."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jingdu import canon

_PAPERS = "jingdu.papers."


def flat(key: str) -> str:
    """The source of a paper with the definitions that it takes from other papers in the place of the imports.

    A definition brings what it needs itself, the oldest first. Imports from elsewhere come to the top of the page.
    Raises UsageError for an unknown paper.
    """
    card = canon.paper(key)
    page = _Page(home=card.module)
    first, *others = (_read(_name_of(path, card)) for path in card.source_files)
    docstring = ast.get_docstring(ast.parse(first.text), clean=False)
    for module in (first, *others):
        page.add_all(module)
    head = f'r"""{docstring}"""\n' if docstring else ""
    # Two definitions may name each other in their annotations, and one of them comes first.
    head += "\nfrom __future__ import annotations\n"
    imports = "\n".join(sorted(page.imports, key=lambda line: (line.startswith("from "), line)))
    return "\n\n".join([head + "\n" + imports, *page.parts]) + "\n"


def _name_of(path: Path, card: canon.Paper) -> str:
    if path == card.source_path:
        return card.module
    inside = path.relative_to(card.source_path.parent).with_suffix("")
    return ".".join([card.module, *(part for part in inside.parts if part != "__init__")])


@dataclass(frozen=True)
class _Module:
    name: str
    text: str
    definitions: dict[str, ast.stmt]
    """Name -> the top-level statement that defines it."""
    imported: dict[str, tuple[str, str]]
    """Name -> module of a paper, and its name there."""
    imports: dict[str, str]
    """Name -> the line that imports it from elsewhere."""

    def source(self, node: ast.stmt) -> str:
        """A statement as it is written, with its decorators, the comment above and the docstring below it."""
        lines = self.text.splitlines()
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while first > 0 and lines[first - 1].startswith("#"):
            first -= 1
        last = node.end_lineno or node.lineno
        body = ast.parse(self.text).body
        after = next((n for n in body if n.lineno > last), None)
        if isinstance(after, ast.Expr) and isinstance(node, ast.Assign | ast.AnnAssign):
            last = after.end_lineno or last
        return "\n".join(lines[first:last])


@cache
def _read(name: str) -> _Module:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {name}")
    text = Path(spec.origin).read_text("utf-8")
    module = _Module(name, text, {}, {}, {})
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent or None)
            for alias in node.names:
                here = alias.asname or alias.name
                if origin.startswith(_PAPERS):
                    module.imported[here] = (origin, alias.name)
                else:
                    renamed = f" as {alias.asname}" if alias.asname else ""
                    module.imports[here] = f"from {origin} import {alias.name}{renamed}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                renamed = f" as {alias.asname}" if alias.asname else ""
                module.imports[alias.asname or alias.name.partition(".")[0]] = f"import {alias.name}{renamed}"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name_node in ast.walk(target):
                    if isinstance(name_node, ast.Name):
                        module.definitions[name_node.id] = node
    return module


def _names(node: ast.AST) -> Iterator[str]:
    """Names that a statement uses, those in annotations written as text too."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id


@dataclass
class _Page:
    home: str
    parts: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    done: set[tuple[str, int]] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def add_all(self, module: _Module) -> None:
        """Every definition of a file of the paper itself, in its order, after the files that it imports."""
        if module.name in self.files:
            return
        self.files.add(module.name)
        for origin, _ in module.imported.values():
            if self._own(origin):
                self.add_all(_read(origin))
        for name, node in module.definitions.items():
            if name != "__all__":
                self.add(module, node)

    def add(self, module: _Module, node: ast.stmt) -> None:
        """A statement, after what it needs."""
        if (module.name, node.lineno) in self.done:
            return
        self.done.add((module.name, node.lineno))
        for name in _names(node):
            if name in module.definitions:
                # What a function calls may stand anywhere; an own file keeps its order.
                if not self._own(module.name):
                    self.add(module, module.definitions[name])
            elif name in module.imported:
                origin, there = module.imported[name]
                self.add_name(origin, there)
            elif name in module.imports:
                self.imports.add(module.imports[name])
        mark = "" if self._own(module.name) else f"# from {module.name}\n"
        self.parts.append(mark + module.source(node))

    def add_name(self, origin: str, name: str) -> None:
        """A name of another module, wherever that one has it from."""
        module = _read(origin)
        if name in module.definitions:
            self.add(module, module.definitions[name])
        elif name in module.imported:
            self.add_name(*module.imported[name])

    def _own(self, module: str) -> bool:
        return f"{module}.".startswith(f"{self.home}.")
