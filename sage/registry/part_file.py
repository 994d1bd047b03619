"""Parts that are given as the path of a file: the hash of its content, and its module."""

import hashlib
import importlib.machinery
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from .. import validate


def content_of(name: str) -> tuple[Path, str]:
    """Return the file of a part given by path, and the first 16 digits of the SHA-256 of its content."""
    path = validate.path(name).absolute()
    try:
        return path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"the part {path} cannot be read: {error.strerror}; give a Python file") from error


@cache
def module_of(path: Path, content: str) -> Any:
    """Import the module in a file, once for each content."""
    name = f"sage_part_{path.stem}_{content}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # get_type_hints looks a class's module up there
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
