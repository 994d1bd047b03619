"""Docstrings of Python's standard library, and which of ten packages each is from: nothing to download."""

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from sage.data.classified_text import ClassifiedText
from sage.data.fetch import DataError
from sage.data.whole_words import WholeWords
from sage.validate import Range

_PACKAGES = (
    *("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "turtle", "unittest", "xml"),
    "_pydecimal",
)


class Docstrings(ClassifiedText):
    """The docstrings of at least 30 characters in ten packages of the standard library, each text once.

    Every fifth is for testing. Python 3.11 has about 1,770 and 440. The texts depend on the Python version:
    compare results across machines only if the recorded checksums are equal.
    """

    def __init__(
        self,
        root: Path,
        *,
        length: Annotated[int, Range(3, 512)] = 64,
        limit_train: Annotated[int | None, Range(1)] = None,
        limit_test: Annotated[int | None, Range(1)] = None,
    ) -> None:
        """Read the sources of this Python; `root` is not used.

        Args:
            length: Tokens of a text; the end of a longer text is dropped.
            limit_train: Train only on this number of texts, in the order of a fixed hash.
            limit_test: Evaluate only on this number of texts, likewise.
        """
        library = Path(sysconfig.get_path("stdlib"))
        texts = {text: label for label, name in enumerate(_PACKAGES) for text in docstrings(library, name)}
        if len(set(texts.values())) < len(_PACKAGES):
            raise DataError(
                f"{library} has no Python sources to read docstrings from: "
                "use a Python that ships its standard library as .py files"
            )
        pairs = list(texts.items())
        split = {
            "train": [pair for index, pair in enumerate(pairs) if index % 5 != 4],
            "test": pairs[4::5],
        }
        for each in split.values():  # mixed, so that a limit keeps texts of all classes
            each.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
        content = repr(pairs).encode()
        super().__init__(
            train=split["train"],
            test=split["test"],
            tokenizer=WholeWords(text for text, _ in split["train"]),
            num_classes=len(_PACKAGES),
            length=length,
            checksums={f"docstrings-{platform.python_version()}": hashlib.sha256(content).hexdigest()},
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because Python includes the data."""


def docstrings(library: Path, package: str) -> Iterator[str]:
    """Yield the docstrings of a package, or a module, that have at least 30 characters."""
    for path in [library / f"{package}.py", *sorted((library / package).rglob("*.py"))]:
        if path.is_file():
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = (ast.get_docstring(node) or "").strip()
                    if len(text) >= 30:
                        yield text


DATASET = Docstrings
