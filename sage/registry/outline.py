"""Reads the signature of a part from its source, without importing it or torch.

The outline of a module contains its constants, and its classes and functions with their docstrings, bases and
keyword-only parameters of `__init__`. `Unknown` is raised for anything that cannot be read from the source;
the caller then imports the part. A test compares the options in every part's outline with those of the
imported part.
"""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


class Unknown(Exception):
    """The value cannot be determined from the source without running it."""


class _Absent:
    """Placeholder for the value of a name that is missing from an outline."""

    def __getattr__(self, name: str) -> Any:
        raise Unknown(name)

    __getitem__ = __call__ = __getattr__


ABSENT = _Absent()

_OUTLINED: dict[int, Any] = {}
"""The functions and classes of outlines by id; they must not be called."""


def outline(module: str, name: str) -> Callable[..., Any]:
    """Return the class or function of this name in a module of SAGE, without its code.

    Raises:
        Unknown: if it cannot be determined from the source.
    """
    found: Any = names_of(module).get(name)
    if id(found) not in _OUTLINED:
        raise Unknown(f"{module}.{name}")
    part: Callable[..., Any] = found
    return part


@cache
def names_of(module: str) -> "Names":
    """Return the names in the outline of a module of SAGE.

    Raises:
        Unknown: if the module has no readable source.
    """
    path = PACKAGE.joinpath(*module.split(".")[1:])
    is_package = (path / "__init__.py").is_file()
    path = path / "__init__.py" if is_package else path.with_suffix(".py")
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise Unknown(module) from error
    return Names(module, module if is_package else module.rpartition(".")[0], tree)


class Names(Mapping[str, Any]):
    """The values of a module's names; each is read on first access."""

    def __init__(self, module: str, package: str, tree: ast.Module) -> None:
        self.module, self._package = module, package
        self._found: dict[str, Any] = {"__name__": module}
        self._nodes: dict[str, tuple[ast.stmt, ast.alias | None]] = {}
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    self._nodes[alias.asname or alias.name.partition(".")[0]] = (node, alias)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                self._nodes[node.name] = (node, None)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self._nodes |= {target.id: (node, None)} if isinstance(target, ast.Name) else {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            node, alias = self._nodes[name]
            self._found[name] = ABSENT  # while it is being read: a name that refers to itself is unknown
            self._found[name] = self._read(node, alias)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getattr__(self, name: str) -> Any:
        return self.get(name, ABSENT)

    def _read(self, node: ast.stmt, alias: ast.alias | None) -> Any:
        try:
            if isinstance(node, ast.ImportFrom) and alias is not None:
                level = "." * node.level + (node.module or "")
                return _imported(resolve_name(level, self._package) if node.level else level, alias.name)
            if isinstance(node, ast.Import) and alias is not None:
                return _module(alias.name if alias.asname else alias.name.partition(".")[0])
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                return _evaluated(node.value, self)
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                made = _class(node, self) if isinstance(node, ast.ClassDef) else _function(node, self)
                _OUTLINED[id(made)] = made
                return made
        except Exception:  # an expression of the module may raise any exception
            pass
        return ABSENT


def _module(name: str) -> Any:
    """Return a standard library module, or a module of SAGE that is already imported; else `ABSENT`."""
    if name.partition(".")[0] in sys.stdlib_module_names or (name in sys.modules and name.startswith("sage")):
        return importlib.import_module(name)
    return ABSENT


def _imported(source: str, name: str) -> Any:
    """Return the object that `from source import name` binds."""
    real = _module(source)
    if real is not ABSENT and (found := getattr(real, name, ABSENT)) is not ABSENT:
        return found
    if source.partition(".")[0] != "sage":
        return ABSENT
    try:
        # A submodule first: a package may import its own modules in this form.
        return names_of(f"{source}.{name}")
    except Unknown:
        return names_of(source)[name]


def _evaluated(value: ast.expr, names: Names) -> Any:
    """Evaluate an expression that calls no function of an outline."""
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            function = _evaluated(node.func, names)
            if id(function) in _OUTLINED:
                raise Unknown(ast.unparse(node))
        elif isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr):
            raise Unknown(ast.unparse(node))
    found = eval(compile(ast.Expression(value), "<outline>", "eval"), {}, names)
    if found is ABSENT:
        raise Unknown(ast.unparse(value))
    return found


def _function(node: ast.FunctionDef, names: Names) -> Callable[..., Any]:
    """Make an empty function with the same keyword-only parameters, types and defaults."""
    if node.decorator_list:
        raise Unknown(node.name)
    given = node.args
    plain = [ast.arg(each.arg) for each in [*given.posonlyargs, *given.args]]
    evaluated: dict[str, Any] = {}
    keywords: list[ast.arg] = []
    defaults: list[ast.expr | None] = []
    for at, (each, default) in enumerate(zip(given.kwonlyargs, given.kw_defaults, strict=True)):
        if each.annotation is not None:
            evaluated[f"_type{at}"] = _evaluated(each.annotation, names)
            if isinstance(evaluated[f"_type{at}"], str):  # a string, which only the module can evaluate
                raise Unknown(each.arg)
        if default is not None:
            evaluated[f"_default{at}"] = _evaluated(default, names)
        keywords.append(ast.arg(each.arg, ast.Name(f"_type{at}", ast.Load()) if each.annotation else None))
        defaults.append(ast.Name(f"_default{at}", ast.Load()) if default is not None else None)
    body: list[ast.stmt] = [ast.Pass()]
    if (doc := ast.get_docstring(node, clean=False)) is not None:
        body = [ast.Expr(ast.Constant(doc))]
    arguments = ast.arguments(
        posonlyargs=[],
        args=plain,
        vararg=ast.arg(given.vararg.arg) if given.vararg else None,
        kwonlyargs=keywords,
        kw_defaults=defaults,
        kwarg=ast.arg(given.kwarg.arg) if given.kwarg else None,
        defaults=[ast.Constant(None)] * len(given.defaults),
    )
    made = ast.FunctionDef(node.name, arguments, body, [], None)
    scope = {"__name__": names.module, **evaluated}
    exec(compile(ast.fix_missing_locations(ast.Module([made], [])), "<outline>", "exec"), scope)
    function: Callable[..., Any] = scope[node.name]
    return function


def _class(node: ast.ClassDef, names: Names) -> type:
    """Make a class with the same docstring, `__init__`, `later` and bases, except bases of other packages."""
    if node.decorator_list or node.keywords:
        raise Unknown(node.name)
    bases = []
    for base in node.bases:
        root = base
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Name) and names.get(root.id, ABSENT) is ABSENT:
            continue
        bases.append(_evaluated(base, names))
    body: dict[str, Any] = {"__doc__": ast.get_docstring(node, clean=False), "__module__": names.module}
    for each in node.body:
        name = getattr(each, "name", "")
        if isinstance(each, ast.FunctionDef) and name == "__init__":
            body[name] = _function(each, names)
        elif name in ("__new__", "options"):
            raise Unknown(f"{node.name}.{name}")
        elif isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None:
            target = each.targets[0] if isinstance(each, ast.Assign) else each.target
            if ast.unparse(target) == "later":
                body["later"] = _evaluated(each.value, names)
    return type(node.name, tuple(bases), body)
