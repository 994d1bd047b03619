"""Fixtures and hooks for all tests."""

import gc
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import durations
import fuzz
import hypothesis
import leftovers
import pytest
import torch
from side_by_side import in_order
from side_by_side import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler

CHECKOUT = Path(__file__).parents[1]

# No deadline, because the machine may be under other load.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--by-file`."""
    parser.addoption("--by-file", action="store_true", help="print the seconds that each file of tests takes")


def pytest_configure(config: pytest.Config) -> None:
    """Register the check for leftover processes and, with `--by-file`, the timing of each file."""
    leftovers.configure(config)
    if config.getoption("--by-file"):
        config.pluginmanager.register(durations.ByFile(), "by-file")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Pause garbage collection while the tests are imported."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the property tests whose budget `SAGE_FUZZ` sets, and sort the slow tests to the front.

    The marked tests are those of modules that import `examples`.
    """
    for item in items:
        module = getattr(item, "module", None)
        is_property = hasattr(getattr(item, "obj", None), "hypothesis")
        if is_property and getattr(module, "examples", None) is fuzz.examples:
            item.add_marker("fuzz")
    items[:] = in_order(items)


def pytest_collection_finish() -> None:
    """Exclude the objects that exist after collection from every garbage collection, also in forked ranks.

    A collection of these objects takes half a second and, in a fork, copies every page.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the real data: `$SAGE_DATA_DIR`, else `../shared/data` next to the checkout."""
    root = Path(os.environ.get("SAGE_DATA_DIR") or CHECKOUT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip("no real data: set SAGE_DATA_DIR")
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, because tests run in parallel and so do their ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sage_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An executable that does what `python -m sage` does, without importing torch again (forked.py)."""
    from forked import executable

    with executable(tmp_path_factory.mktemp("bin")) as path:
        yield str(path)


@pytest.fixture(scope="session")
def python_command(sage_command: str) -> str:
    """An executable that does what `python -m MODULE` and `python FILE` do, without importing torch again."""
    return str(Path(sage_command).with_name("python"))


@pytest.fixture
def sage(tmp_path: Path, sage_command: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `sage` in an empty folder, as a user would; `paths` are searched for packages."""

    def run(
        *arguments: str, paths: tuple[Path, ...] = (), timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        search = os.pathsep.join(map(str, (*paths, CHECKOUT)))
        return subprocess.run(
            [sage_command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": search, "COLUMNS": "100", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
