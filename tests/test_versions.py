"""Tests of the versions that SAGE supports: one range everywhere, and one line where a part needs more."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import sage
from sage.comm.process import ProcessWire
from sage.config import Config
from sage.data import text
from sage.models.imagenet import imagenet
from sage.ops import native
from sage.train.choose_mount import attach

CHECKOUT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PYTHONS = ["3.11", "3.12", "3.13"]
OPTIONAL = ("images", "speech", "text")


def read(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def needs() -> list[str]:
    """Every package that SAGE or one of its optional parts needs, with its lower bound."""
    project = PROJECT["project"]
    return [*project["dependencies"], *(n for e in OPTIONAL for n in project["optional-dependencies"][e])]


def lower(package: str) -> str:
    """The lower bound of a package, as `2.8` or `2.8.0`."""
    (bound,) = (need for need in needs() if re.split("[>=]", need)[0] == package)
    return bound.split("=")[-1]


def pins() -> dict[str, str]:
    """The versions of tests/oldest.txt by package."""
    lines = [line for line in read("tests/oldest.txt").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_oldest_set_has_the_lower_bound_of_every_package_and_the_tools_of_the_tests() -> None:
    tools = dict(tool.split("==") for tool in PROJECT["project"]["optional-dependencies"]["dev"])
    bounds = {re.split("[>=]", need)[0]: need.split("=")[-1] for need in needs()}
    tested = {name: tools[name] for name in ("hypothesis", "pytest", "pytest-xdist", "pyyaml")}
    (builder,) = PROJECT["build-system"]["requires"]
    assert pins() == bounds | tested | dict([builder.split(">=")])


def test_the_same_range_of_python_is_stated_everywhere() -> None:
    project, after = PROJECT["project"], f"3.{int(PYTHONS[-1].partition('.')[2]) + 1}"
    assert project["requires-python"] == f">={PYTHONS[0]},<{after}"
    classified = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: Python ::" in line]
    assert classified == PYTHONS
    assert f"  - python>={PYTHONS[0]},<{after}\n" in read("environment.yml")
    checked = re.search(r"not \((\d+), (\d+)\) <= sys.version_info < \((\d+), (\d+)\)", read("Makefile"))
    assert checked
    assert ".".join(checked.groups()) == f"{PYTHONS[0]}.{after}"
    tool = PROJECT["tool"]
    target = f"py{PYTHONS[0].replace('.', '')}"
    named = tool["mypy"]["python_version"], tool["pyright"]["pythonVersion"], tool["ruff"]["target-version"]
    assert named == (PYTHONS[0], PYTHONS[0], target)
    torch_release = lower("torch").removesuffix(".0")
    for page in ("README.md", "docs/reference/versions.md"):
        assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}, PyTorch {torch_release} or later" in read(page), page


def test_the_page_of_versions_has_every_lower_bound() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) \|", read("docs/reference/versions.md"), re.MULTILINE)
    assert dict(rows) == {re.split("[>=]", need)[0]: need.split("=")[-1] for need in needs()}


def test_the_build_needs_no_torch_of_its_own() -> None:
    # A build in isolation would otherwise download one, and compile for that.
    assert [re.split("[>=]", need)[0] for need in PROJECT["build-system"]["requires"]] == ["setuptools"]


def made_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """Write a wheel that has no files but its metadata."""
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: images"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def test_the_installation_keeps_a_suitable_torch_that_is_there(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    with zipfile.ZipFile(made_wheel(tmp_path, "torch", lower("torch"))) as oldest:
        oldest.extractall(site)
    # What a registry has: a newer torch, and the torchvision that needs it, as each needs one torch.
    index = tmp_path / "index"
    index.mkdir()
    made_wheel(index, "torch", "99.0")
    made_wheel(index, "torchvision", "99.0", "torch==99.0")
    project = PROJECT["project"]
    for need in project["dependencies"]:
        name, _, version = need.replace(">=", "==").partition("==")
        if name not in ("torch", "torchvision"):
            made_wheel(index, name, version, *["torch"] * (name == "torchtext"))
    images = [f'{need}; extra == "images"' for need in project["optional-dependencies"]["images"]]
    own = made_wheel(tmp_path, project["name"], "1.0", *project["dependencies"], *images)

    def installed(what: str) -> str:
        options = ("--dry-run", "--no-index", "--disable-pip-version-check", "--find-links", str(index))
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, what]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment["PIP_CONFIG_FILE"] = os.devnull  # a machine's own constraints do not count here
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    kept = installed(str(own)).splitlines()[-1]
    assert kept.startswith("Would install ")
    assert " torchtext-" in kept
    assert " torch-" not in kept
    with_images = installed(f"{own}[images]").splitlines()[-1]
    assert " torch-99.0" in with_images  # docs/reference/versions.md warns of it


def test_no_part_imports_torchtext_spacy_or_torchvision(tmp_path: Path, python_command: str) -> None:
    modules = [
        f"sage.{kind}.{path.stem}"
        for kind in ("reducers", "models", "datasets")
        for path in sorted((CHECKOUT / kind).glob("[!_]*.py"))
    ]
    (tmp_path / "script.py").write_text(
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['spacy', 'torchtext', 'torchvision', 'transformers']))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "from sage.cli.main import main\n"
        "sys.exit(main(['run', 'digits-ff', '--world-size', '1', '--steps', '1', '--runs', 'runs']))\n"
    )
    done = subprocess.run(
        [python_command, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_in_one_line_by_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    release = torch.__version__.partition("+")[0]
    with pytest.raises(ValueError, match=rf"imagenet needs .* pip install torchvision torch=={release}, .*$"):
        imagenet(num_classes=2)
    texts, missing = {"train": "a b\n"}, set[str]()

    def version(package: str) -> str:
        if package in missing:
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(text, "version", version)
    for name, remedy in (("spacy", "'sage-bench[text]', or set"), ("torchtext", "torchtext==0.6.0")):
        missing.add(name)
        with pytest.raises(ValueError, match=f"needs the package {name}: pip install {re.escape(remedy)}"):
            text.encode(texts, Path("/nowhere"), tokenizer="spacy")


@pytest.mark.parametrize("version", ["2.8.0", "2.13.1+cpu"])
def test_what_needs_a_newer_fsdp2_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    said = rf"^{{}} needs torch 2.14 or later, and this is {re.escape(version)}; .*$"
    with pytest.raises(ValueError, match=said.format("sage.fsdp_hook")):
        sage.fsdp_hook(nn.Linear(1, 1), "topk", replicate=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said.format("sage.shard_comm")):
        sage.shard_comm(nn.Linear(1, 1))
    config = Config(workload="w", task="classify", model="resnet", data="digits", mount="fsdp")
    parts: Any = SimpleNamespace(config=config, wire=object.__new__(ProcessWire))
    with pytest.raises(ValueError, match=said.format("--mount fsdp")):
        attach(parts)


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [("2.8.0+cu128", False), ("2.9.1", False), ("2.10.0a0+git1", True), ("2.10.0", True), ("3.0.0", True)],
)
def test_the_extension_needs_torch_2_10_and_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, version: str, is_enough: bool
) -> None:
    monkeypatch.delenv("SAGE_NATIVE", raising=False)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = native._load()
    assert said is not None
    assert (said == f"it needs torch 2.10 or later, and this is {version}") is not is_enough


def test_an_older_torch_is_refused_by_the_build_before_it_compiles(tmp_path: Path) -> None:
    major, minor = native.OLDEST_TORCH
    assert f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}0000" in read("setup.py")
    assert f"OLDEST_TORCH = {major}, {minor}\n" in read("setup.py")
    fake = tmp_path / "torch"
    (fake / "include/torch/csrc/stable").mkdir(parents=True)
    (fake / "include/torch/csrc/stable/library.h").touch()
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SAGE_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no native extension: it needs torch 2.10 or later, and 2.9.1+cpu is installed" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_the_extension_uses_nothing_of_torch_that_2_10_lacks() -> None:
    built = CHECKOUT / "sage" / "_C.abi3.so"
    if not built.is_file():
        pytest.skip("the extension is not built")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", built], check=True, capture_output=True, text=True
    ).stdout
    used = set(re.findall(r" U ((?:aoti_)?torch_\w+|_ZN\w*(?:c10|torch)\w*)", listed))
    known = set(read("tests/stable_abi.txt").split("\n\n", 1)[1].split())
    assert len(used) > 20
    assert used <= known
