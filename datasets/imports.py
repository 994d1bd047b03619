"""Imports of Python's standard library as implicit feedback: real data, available on every machine."""

import ast
import hashlib
import os
import platform
import sysconfig
from collections.abc import Container, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import torch

from sage.data.fetch import DataError
from sage.data.interactions import Interactions

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
"""Folders that are present in some distributions only."""


class Imports(Interactions):
    """The imports of the standard library: a user is a source file, an item is a module that it imports.

    The time is the position in the file, so the module imported last is held out. The matrix depends on the
    Python version (3.11: about 250 files by 400 modules) and on modules that a distribution packages
    separately, such as tkinter: compare results across machines only if the recorded checksums are equal.
    """

    def __init__(
        self, root: Path, *, minimum: int = 5, negatives: int = 4, test_negatives: int = 100
    ) -> None:
        pairs = standard_library_imports()
        if not pairs:
            raise DataError(
                f"{sysconfig.get_path('stdlib')} has no Python sources to read imports from: "
                "use a Python that ships its standard library as .py files"
            )
        files, modules = (sorted(set(names)) for names in zip(*pairs, strict=True))
        file_ids, module_ids = ({name: i for i, name in enumerate(names)} for names in (files, modules))
        text = "".join(f"{file}\t{module}\n" for file, module in pairs)
        super().__init__(
            torch.tensor([file_ids[file] for file, _ in pairs]),
            torch.tensor([module_ids[module] for _, module in pairs]),
            torch.arange(len(pairs)),
            minimum=minimum,
            negatives=negatives,
            test_negatives=test_negatives,
            checksums={f"imports-{platform.python_version()}": hashlib.sha256(text.encode()).hexdigest()},
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because Python includes the data."""


@cache
def standard_library_imports() -> list[tuple[str, str]]:
    """List pairs (module, module it imports) of the standard library, in the order of the source lines."""
    sources = dict(_sources(Path(sysconfig.get_path("stdlib"))))
    return [
        (name, imported)
        for name, path in sorted(sources.items())
        for imported in imports_of(path.read_bytes(), name, sources, is_package=path.stem == "__init__")
    ]


def imports_of(source: bytes, name: str, known: Container[str], *, is_package: bool = False) -> Iterator[str]:
    """Yield the absolute names of the modules that a source file imports, in the order of its lines.

    `from a import b` imports `a.b` if that is among the `known` modules, else `a`.

    >>> list(imports_of(b"import os, re; from .c import d; from . import c, e", "a.b", {"a.c"}))
    ['os', 're', 'a.c', 'a.c', 'a']
    """
    package = name if is_package else name.rpartition(".")[0]
    for statement in _statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = resolve_name("." * statement.level + (statement.module or ""), package)
            for alias in statement.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in known else base


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements in a node's blocks, at any depth.

    Expressions are not visited, which saves most of the time that `ast.walk` takes.
    """
    for block in ("body", "handlers", "cases", "orelse", "finalbody"):
        for statement in getattr(node, block, ()):
            yield statement
            yield from _statements(statement)


def _sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (module name, file) for every Python source under a folder."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for path in (Path(where, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


DATASET = Imports
