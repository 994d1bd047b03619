"""Tests of the source layout: packages, files, the imports between them, and the coverage of the tools."""

import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import median

import grimp
import pytest
from grimp import ImportGraph

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LINKS = ("datasets", "jobs", "models", "reducers")


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return grimp.build_graph("sage", "sage.datasets", cache_dir=None)


def sources() -> list[Path]:
    """Return every source file of the package, including the parts behind symbolic links."""
    found = [*(ROOT / "sage").rglob("*.py")]
    for link in LINKS:
        found += (ROOT / "sage" / link).rglob("*.py")
    return sorted({path for path in found if "__pycache__" not in path.parts})


def circles(graph: ImportGraph) -> list[set[str]]:
    """Return the import cycles: sets of modules that import each other directly or indirectly."""
    below: dict[str, set[str]] = {}
    for module in graph.modules:
        seen: set[str] = set()
        todo = [module]
        while todo:
            for imported in graph.find_modules_directly_imported_by(todo.pop()) - seen:
                seen.add(imported)
                todo.append(imported)
        below[module] = seen
    return [{other for other in below[each] if each in below[other]} for each in below if each in below[each]]


def test_there_are_no_import_cycles(graph: ImportGraph) -> None:
    assert circles(graph) == []


def test_an_import_cycle_is_detected() -> None:
    graph = ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "b")):
        graph.add_import(importer=importer, imported=imported)
    assert circles(graph) == [{"b", "c"}, {"b", "c"}]


def test_the_import_graph_has_every_source_file(graph: ImportGraph) -> None:
    def module(path: Path) -> str:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    assert {module(path) for path in sources()} - graph.modules == set()


def test_packages_import_only_from_lower_layers() -> None:
    lint = [str(BIN / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_at_most_26_packages_and_modules_in_sage() -> None:
    package = ROOT / "sage"
    packages = {path.parent for path in package.glob("*/__init__.py")}
    modules = set(package.glob("*.py")) - {package / "__init__.py"}
    names = {path.name for path in packages | modules} - set(LINKS)
    assert len(names) <= 26, sorted(names)


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in sources()}
    assert {path: number for path, number in lines.items() if number >= 320} == {}
    assert median(lines.values()) < 110


def test_git_ignores_no_source_file() -> None:
    paths = "\n".join(str(path.relative_to(ROOT)) for path in (ROOT / "sage").rglob("*.py"))
    ignored = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(ignored, cwd=ROOT, input=paths, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr


def test_ruff_and_pyright_check_every_source_file() -> None:
    ruff = [str(BIN / "ruff"), "check", "--show-files", "sage", *LINKS]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {path.resolve() for path in sources()} <= {
        Path(line).resolve() for line in done.stdout.splitlines()
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    # Pyright's patterns are relative to the checkout.
    excluded = {path for pattern in settings["exclude"] for path in (ROOT).glob(pattern)}
    assert [path for path in sources() if excluded & {path, *path.parents}] == []


def test_the_picture_of_the_layers_matches_the_imports(tmp_path: Path) -> None:
    picture = tmp_path / "layers.svg"
    subprocess.run([sys.executable, "benchmarks/layers.py", str(picture)], cwd=ROOT, check=True)
    text = picture.read_text()
    assert "<title>train imports comm: " in text
    assert all(f">{component}</text>" in text for component in (*LINKS, "cli", "version"))
