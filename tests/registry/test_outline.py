"""Tests that the options read from the source of a part are those of the part, without importing it."""

import ast
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from sage import registry
from sage.reduction import Quantiser, Sparsifier
from sage.registry.outline import Names, Unknown, composed, outline

KINDS_OF_PARTS: tuple[registry.PartKind, ...] = ("reducers", "models", "datasets")
PARTS = [(kind, name) for kind in KINDS_OF_PARTS for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_an_outline_has_the_options_of_its_part(kind: registry.PartKind, name: str) -> None:
    read = outline(f"sage.{kind}.{name}", registry.EXPORTS[kind])
    part = registry.load(kind, name)
    assert read is not part
    options = registry.options(read, kind=kind)
    assert dict(options) == dict(registry.options(part, kind=kind))
    assert list(options) == list(registry.options(part, kind=kind))
    assert set(getattr(read, "later", ())) == set(getattr(part, "later", ()))


def reducers_of(base: type) -> list[str]:
    """Return the names of the reducers that derive from a class."""
    parts = {name: registry.load("reducers", name) for name in registry.names("reducers")}
    return [name for name, part in parts.items() if isinstance(part, type) and issubclass(part, base)]


def test_every_hybrid_has_the_options_of_its_outline() -> None:
    sparsifiers, quantisers = reducers_of(Sparsifier), reducers_of(Quantiser)
    assert len(sparsifiers) > 10
    assert len(quantisers) > 5
    read = {name: outline(f"sage.reducers.{name}", "REDUCER") for name in sparsifiers + quantisers}
    for sparsifier, quantiser in product(sparsifiers, quantisers):
        part = registry.load("reducers", f"{sparsifier}+{quantiser}")
        found = composed(read[sparsifier], read[quantiser])
        assert list(registry.options(found).items()) == list(registry.options(part).items())
        assert getattr(found, "later", ()) == getattr(part, "later", ())


@pytest.mark.parametrize(("first", "second"), [("onebit", "topk"), ("topk", "topk"), ("exact", "onebit")])
def test_a_name_that_is_not_a_hybrid_has_no_outline(first: str, second: str) -> None:
    with pytest.raises(Unknown):
        composed(*(outline(f"sage.reducers.{name}", "REDUCER") for name in (first, second)))


@pytest.mark.parametrize(
    "source",
    [
        "class Part:\n    def __new__(cls, *, a: int = 1): return object()",
        "@wrapped\nclass Part:\n    def __init__(self, *, a: int = 1): ...",
        "class Part(metaclass=Other):\n    def __init__(self, *, a: int = 1): ...",
        "class Part:\n    @hidden\n    def __init__(self, *, a: int = 1): ...",
        "class Part:\n    def __init__(self, *, a: torch.dtype = None): ...",
        "def default(): return 1\nclass Part:\n    def __init__(self, *, a: int = default()): ...",
        "class Part:\n    def __init__(self, *, a: 'int' = 1): ...",
        "class Base: ...\nPart = Base()",
        "if True:\n    class Part: ...",
        "Part = Part",
        "class Part:\n    def __init__(self, *, a: int = len('ab')): ...",
        "class Part:\n    def __init__(self, *, a: int = [1 for _ in range(2)][0]): ...",
        "import os\nclass Part:\n    def __init__(self, *, a: str = os.getcwd()): ...",
    ],
)
def test_values_that_only_execution_determines_are_unknown(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    names = Names("sage.x", "sage", ast.parse("import torch\n" + source))
    monkeypatch.setattr("sage.registry.outline.names_of", lambda module: names)
    with pytest.raises(Unknown):
        outline("sage.x", "Part")


def test_options_of_every_part_are_read_without_torch() -> None:
    code = (
        "import sys; from sage import registry\n"
        "for kind in ('reducers', 'models', 'datasets'):\n"
        "    for name in registry.names(kind): registry.options_of(kind, name, from_source=True)\n"
        "for name in ('topk+onebit', 'adacomp+efsign', 'topk+terngrad'):\n"
        "    registry.options_of('reducers', name, from_source=True)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_hybrid_is_known_where_its_parts_are_imported_after_its_outline_was_read() -> None:
    code = (
        "from sage.registry.outline import composed, names_of, outline\n"
        "names_of('sage.reduction.hybrid').get('Sparsifier')\n"
        "import sage.reducers.topk\n"
        "parts = outline('sage.reducers.accordion', 'Accordion'), outline('sage.reducers.int8', 'Int8')\n"
        "assert 'density_high' in composed(*parts).options()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
