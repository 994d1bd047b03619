"""Reads the signature of a part from its source, without importing it or torch.

The outline of a module contains its constants, and its classes and functions with their docstrings, bases and
keyword-only parameters of `__init__`. Nothing of the module is run: `value_of` reads literals, names,
types and the calls of `PURE`. `Unknown` is raised for anything else; the caller then imports the part. A test
compares the options in every part's outline with those of the imported part.
"""

import ast
import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType
from typing import Any

from ..validate import Before, Range
from .signature import composed_options, served_options

PACKAGE = Path(__file__).parents[1]

BUILTINS = {
    builtin.__name__: builtin for builtin in (bool, int, float, str, tuple, list, dict, set, frozenset)
}

PURE = (Range, Before, frozenset)
"""What an expression may call: the result depends on the arguments alone."""

ABSENT: Any = object()
"""The value of a name that cannot be determined."""


class Unknown(Exception):
    """The value cannot be determined from the source without running it."""


_OUTLINED: dict[int, Any] = {}
"""The functions and classes of outlines, by id."""


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


def composed(sparsifier: Callable[..., Any], quantiser: Callable[..., Any]) -> Callable[..., Any]:
    """Return the outline of a hybrid of two outlines, as `sage.reduction.hybrid` composes the parts.

    Raises:
        Unknown: if they are not known to be a sparsifier and a quantiser.
    """
    bases = names_of("sage.reduction.hybrid")
    for part, kinds in ((sparsifier, ("Sparsifier", "Transform")), (quantiser, ("Quantiser",))):
        allowed = {_named(bases.get(kind)) for kind in kinds}
        if not (isinstance(part, type) and allowed.intersection(map(_named, part.__mro__))):
            raise Unknown(f"{part.__name__} as a {kinds[0].lower()}")
    later: Any = [getattr(part, "later", frozenset()) for part in (sparsifier, quantiser)]
    options = classmethod(lambda _: composed_options(sparsifier, quantiser))
    name = f"{sparsifier.__name__}{quantiser.__name__}"
    return type(name, (), {"options": options, "later": later[0] | later[1]})


def _named(part: Any) -> tuple[Any, Any]:
    """Return a class's module and name: of a module imported after its outline was read, both are in use."""
    return getattr(part, "__module__", None), getattr(part, "__qualname__", None)


def composed_with_server(reducer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the outline of a reducer whose mean servers encode, as `sage.reduction.served` makes it."""
    own = served_options(reducer)
    later: Any = getattr(reducer, "later", frozenset())
    options = classmethod(lambda _: own)
    return type(f"{reducer.__name__}Served", (), {"options": options, "later": later & set(own)})


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

    def _read(self, node: ast.stmt, alias: ast.alias | None) -> Any:
        try:
            if isinstance(node, ast.ImportFrom) and alias is not None:
                level = "." * node.level + (node.module or "")
                return _imported(resolve_name(level, self._package) if node.level else level, alias.name)
            if isinstance(node, ast.Import) and alias is not None:
                return _module(alias.name if alias.asname else alias.name.partition(".")[0])
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                return value_of(node.value, self)
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


def value_of(node: ast.expr, names: Names) -> Any:
    """Return the value of an expression of literals, names of the module, types, and calls of `PURE`.

    Raises:
        Unknown: if it has anything else.
        Exception: if the expression itself would raise one.
    """
    found = ABSENT
    match node:
        case ast.Constant():
            found = node.value
        case ast.UnaryOp():
            found = ast.literal_eval(node)
        case ast.Name():
            found = names[node.id] if node.id in names else BUILTINS.get(node.id, ABSENT)
        case ast.Attribute():
            owner = value_of(node.value, names)
            if isinstance(owner, Names):
                found = owner[node.attr]
            elif isinstance(owner, ModuleType):
                found = getattr(owner, node.attr)
        case ast.Subscript():
            found = operator.getitem(value_of(node.value, names), value_of(node.slice, names))
        case ast.BinOp(op=ast.BitOr()):
            found = operator.or_(value_of(node.left, names), value_of(node.right, names))
        case ast.Tuple() | ast.List() | ast.Set():
            kind = {ast.Tuple: tuple, ast.List: list, ast.Set: set}[type(node)]
            found = kind([value_of(element, names) for element in node.elts])
        case ast.Call():
            function = value_of(node.func, names)
            if function in PURE:
                keywords = {str(keyword.arg): value_of(keyword.value, names) for keyword in node.keywords}
                found = function(*(value_of(argument, names) for argument in node.args), **keywords)
    if found is ABSENT:
        raise Unknown(ast.unparse(node))
    return found


def _function(node: ast.FunctionDef, names: Names) -> Callable[..., Any]:
    """Make an empty function with the same keyword-only parameters, types and defaults."""
    if node.decorator_list:
        raise Unknown(node.name)
    given = node.args
    types: dict[str, Any] = {}
    parameters = [
        Parameter(argument.arg, Parameter.POSITIONAL_ONLY) for argument in (*given.posonlyargs, *given.args)
    ]
    if given.vararg:
        parameters.append(Parameter(given.vararg.arg, Parameter.VAR_POSITIONAL))
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if argument.annotation is not None:
            types[argument.arg] = value_of(argument.annotation, names)
            if isinstance(types[argument.arg], str):  # a string, which only the module can evaluate
                raise Unknown(argument.arg)
        value = value_of(default, names) if default is not None else Parameter.empty
        parameters.append(Parameter(argument.arg, Parameter.KEYWORD_ONLY, default=value))
    if given.kwarg:
        parameters.append(Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD))

    def function(*_: Any, **__: Any) -> Any:
        raise TypeError(f"{names.module}.{node.name} is an outline, which has no code")

    function.__name__, function.__module__ = node.name, names.module
    function.__doc__ = ast.get_docstring(node, clean=False)
    function.__annotations__ = types
    vars(function)["__signature__"] = Signature(parameters)
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
        bases.append(value_of(base, names))
    body: dict[str, Any] = {"__doc__": ast.get_docstring(node, clean=False), "__module__": names.module}
    for statement in node.body:
        name = getattr(statement, "name", "")
        if isinstance(statement, ast.FunctionDef) and name == "__init__":
            body[name] = _function(statement, names)
        elif name in ("__new__", "options"):
            raise Unknown(f"{node.name}.{name}")
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if ast.unparse(target) == "later":
                body["later"] = value_of(statement.value, names)
    return type(node.name, tuple(bases), body)
