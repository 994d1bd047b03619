"""Tests that SAGE imports from a checkout, an editable install and a wheel, with the same lists of parts."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[1]
LINKED_FOLDERS = ("reducers", "models", "datasets", "jobs")
IMPORTS = (
    "import sage.reducers.topk, sage.models.resnet, sage.datasets.digits, sage.jobs, sage.config; "
    "assert 'digits' in sage.config.workloads(); print(sage.__file__)"
)


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def sources(*patterns: str) -> list[Path]:
    """Return the files of the checkout that are or could be committed, as relative paths."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(name) for name in listed.split("\0") if name and os.path.lexists(CHECKOUT / name)]


def plain_environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    # The native extension takes a minute to build, and nothing here needs it.
    return {**plain, "SAGE_NATIVE": "0"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**plain_environment(), **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources that preserves symbolic links."""
    copy = tmp_path_factory.mktemp("tree")
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, copy / name, follow_symlinks=False)
    return copy


def build_wheel(tree: Path, folder: Path, **environment: str) -> Path:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    wheel = (sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, tree)
    run(*wheel, cwd=folder, **environment)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


def environment(folder: Path) -> Path:
    """Create a virtual environment with only the packages that SAGE needs, and return its Python."""
    venv.create(folder, symlinks=True)
    places = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=places))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # Links avoid a second download of torch; SAGE itself is left out, however it is installed here.
        if "sage" not in entry.name and not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def test_the_wheel_contains_every_folder_of_parts_once_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("sage/") for name in inside)
    assert len(names) == len(set(names))
    wanted = {
        f"sage/{name}"
        for name in sources()
        if name.parts[0] in LINKED_FOLDERS and name.suffix in (".py", ".sh", ".toml")
    }
    wanted |= {str(name) for name in sources("sage/*.py")}
    assert inside == wanted | {"sage/py.typed"}


def test_the_installation_succeeds_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    wheel = build_wheel(tree, tmp_path, SAGE_NATIVE="1", SAGE_CUDA="0", CXX="/nowhere/c++")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sage/ops/__init__.py" in names
    assert not any(name.startswith("sage/_C") for name in names)


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, *install, "--disable-pip-version-check", wheel, cwd=tmp_path)
    listed = run(python.with_name("sage"), "list", cwd=tmp_path)
    assert "  topk " in listed
    assert "  digits " in listed
    assert Path(run(python, "-c", IMPORTS, cwd=tmp_path).strip()).is_relative_to(tmp_path)
    for name in LINKED_FOLDERS:
        run(
            python,
            "-c",
            f"import importlib.util; assert not importlib.util.find_spec({name!r})",
            cwd=tmp_path,
        )


def test_a_bare_checkout_works(tree: Path) -> None:
    assert Path(run(sys.executable, "-c", IMPORTS, cwd=tree).strip()) == tree / "sage" / "__init__.py"
    assert "  topk " in run(sys.executable, "-m", "sage", "list", cwd=tree)


def test_an_editable_install_works_and_follows_changes_of_the_checkout(tree: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install = ("-m", "pip", "--python", python, "install", "--no-build-isolation", "--no-deps", "--no-index")
    run(sys.executable, *install, "--quiet", "--disable-pip-version-check", "-e", tree, cwd=tmp_path)
    assert Path(run(python, "-c", IMPORTS, cwd=tmp_path).strip()) == tree / "sage" / "__init__.py"
    new = tree / "reducers" / "newest.py"
    new.write_text('"""Newest: a file that was not there when it was installed."""\n')
    try:
        assert "  newest " in run(python.with_name("sage"), "list", cwd=tmp_path)
    finally:
        new.unlink()


def test_datasets_is_not_a_top_level_package() -> None:
    assert not (CHECKOUT / "datasets" / "__init__.py").exists()


@pytest.mark.parametrize("folder", LINKED_FOLDERS)
def test_the_folders_of_parts_are_links_inside_sage(folder: str) -> None:
    assert (CHECKOUT / "sage" / folder).is_symlink()
    assert (CHECKOUT / "sage" / folder).resolve() == (CHECKOUT / folder).resolve()


def test_conda_installs_the_same_packages_as_pip_with_all_extras() -> None:
    conda = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    (packages,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    wanted = project()["project"]
    extras = wanted["optional-dependencies"]
    assert packages == sorted(wanted["dependencies"] + extras["images"] + extras["speech"] + extras["text"])
    assert f"python{wanted['requires-python']}" in conda["dependencies"]


def test_every_tool_is_pinned_and_every_package_bounded() -> None:
    wanted = project()["project"]
    assert all("==" in need for need in wanted["optional-dependencies"]["dev"])
    assert all(">=" in need or "==" in need for need in wanted["dependencies"])


def test_the_first_line_of_every_file_is_its_summary() -> None:
    for name in sources("sage/*.py", *(f"{folder}/*.py" for folder in LINKED_FOLDERS)):
        first = (CHECKOUT / name).read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith('"""'), name
        assert first.rstrip('"')[-1] in ".:`…", name


@pytest.mark.parametrize("name", sorted(path.stem for path in (CHECKOUT / "sage").glob("[!_]*.py")))
def test_the_examples_in_the_docstrings_are_correct(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"sage.{name}")).failed == 0


@pytest.mark.parametrize("folder", ["reducers", "models", "datasets", "sage/bench", "sage/controllers"])
def test_the_examples_in_the_folders_of_parts_are_correct(folder: str) -> None:
    package = "sage." + folder.removeprefix("sage/")
    for path in sorted((CHECKOUT / folder).glob("[!_]*.py")):
        assert doctest.testmod(importlib.import_module(f"{package}.{path.stem}")).failed == 0, path


def test_the_build_and_the_resource_report_compile_kernels_with_the_options_of_one_file() -> None:
    assert "-fmad=false" in (CHECKOUT / "csrc/cuda/nvcc.options").read_text().split()
    for reader in ("setup.py", "benchmarks/kernel_resources.py"):
        text = (CHECKOUT / reader).read_text()
        assert '"--options-file"' in text
        assert "nvcc.options" in text
        assert "fmad" not in text


def test_make_lists_its_targets() -> None:
    if not shutil.which("make"):
        pytest.skip("no make")
    listed = run("make", "--no-print-directory", cwd=CHECKOUT)
    assert {line.split()[0] for line in listed.splitlines()} >= {".venv", "demo", "test", "lint", "format"}
