"""Mutation tests: inserts each fault of mutants*.toml into a copy of the checkout and expects a test failure.

python tests/mutate.py             all faults, which takes ten minutes or more
python tests/mutate.py residual    the faults with this word in their sentence, file or test
python tests/mutate.py csrc/cuda   the faults in CUDA kernels, which the emulated tests must find

The tests first run without any fault. The exit status is 1 if a test fails then, or if a fault survives.
Each test runs in a fork of this process, which has imported torch and pytest but nothing of SAGE.
"""

import argparse
import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
EMULATED = "tests/csrc/emulated.cpp"
"""The tests of the CUDA kernels: they are compiled with the fault, and one of them runs."""
PLAIN = "sage/ops/reference"
"""The file that is used only without the extension."""
IMPORTED = ("torch._dynamo", "torch.distributed.fsdp", "torch.optim", "numpy", "scipy")
"""What a fork need not import again: the packages that take the longest."""
FORK = multiprocessing.get_context("fork")
CLUMSY = ("NameError", "UnboundLocalError", "ImportError", "AttributeError", "SyntaxError")
"""Errors that show that a fault was inserted incorrectly; they do not count as a detection."""


@dataclass(frozen=True)
class Mutant:
    """One fault, and the test that must fail with it."""

    fault: str
    file: str
    old: str
    """Text that occurs once in the file and is replaced by `new`."""
    new: str
    test: str
    compares: bool = False
    """Whether the test compares the extension with the file, and so needs the extension."""

    @property
    def plain(self) -> bool:
        """Whether the test has to run without the extension."""
        return self.file.startswith(PLAIN) and not self.compares

    @property
    def is_emulated(self) -> bool:
        """Whether the test is one of the CUDA kernels."""
        return self.test.startswith(EMULATED)

    def put_into(self, folder: Path) -> None:
        """Apply the fault to the file in this folder."""
        path = folder / self.file
        text = path.read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.file} has this text {text.count(self.old)} times, not once: {self.old!r}"
            )
        path.write_text(text.replace(self.old, self.new), "utf-8")


def mutants() -> list[Mutant]:
    """Return the list of faults."""
    lists = [tomllib.loads(path.read_text("utf-8")) for path in sorted(CHECKOUT.glob("tests/mutants*.toml"))]
    return [Mutant(**entry) for listed in lists for entry in listed["mutant"]]


def copy(folder: Path) -> None:
    """Copy the current checkout without ignored files, but with the extension if it is built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    for name in (*listed.rstrip("\0").split("\0"), "sage/_C.abi3.so"):
        if os.path.lexists(CHECKOUT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name, follow_symlinks=False)


def run(
    tests: Sequence[str], *, plain: bool, mutant: Mutant | None = None, limit: float | None = None
) -> tuple[int | None, str]:
    """Return pytest's exit status, or None after the timeout, and a one-line summary of its output."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder, tempfile.NamedTemporaryFile() as output:
        copy(Path(folder))
        if mutant:
            mutant.put_into(Path(folder))
        if tests[0].startswith(EMULATED):
            return run_emulated([test.partition("::")[2] for test in tests], folder, limit)
        # Tests that only `make test-all` runs do not count.
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not thorough", *tests]
        process = FORK.Process(target=run_pytest, args=(arguments, folder, output.fileno(), plain))
        process.start()
        process.join(limit)
        ended = process.exitcode is not None
        if not ended and process.pid:
            os.killpg(process.pid, signal.SIGKILL)  # the processes that the test started, too
            process.join()
        lines = Path(output.name).read_text("utf-8", "replace").splitlines() or [""]
    summary = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    return (process.exitcode, summary) if ended else (None, "")


def run_emulated(names: Sequence[str], folder: str, limit: float | None) -> tuple[int | None, str]:
    """Compile the emulated tests in the folder and run some; returns what `run` does, in pytest's words."""
    built = subprocess.run(
        ["make", "--silent", "build-emulate"], cwd=folder, capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        return 2, f"ERROR {EMULATED} - {next((x for x in built.stderr.splitlines() if 'error' in x), '')}"
    try:
        done = subprocess.run(
            ["./build-emulate", *names],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    if done.returncode == 0:
        return 0, f"{len(names)} passed"
    lines = (done.stdout + done.stderr).splitlines() or [f"ended with {done.returncode}"]
    return 1, f"FAILED {EMULATED} - {lines[-1].removeprefix('FAILED: ')}"


def run_pytest(arguments: list[str], folder: str, output: int, plain: bool) -> None:
    """Run pytest in this fork, on the copy of the checkout in the folder, and end with its exit status."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path[:] = [folder, *(path for path in sys.path if not path.startswith(str(CHECKOUT / "tests")))]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=folder, PYTHONDONTWRITEBYTECODE="1", COLUMNS="240")
    if plain:
        os.environ["SAGE_NATIVE"] = "0"
    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(status)


def judge(mutant: Mutant, limit: float) -> tuple[bool, str]:
    """Return whether the test detected the fault, and how."""
    status, result = run([mutant.test], plain=mutant.plain, mutant=mutant, limit=limit)
    reason = result.partition(" - ")[2]
    if status is None:
        return True, f"hangs: seen after {limit:g} s"
    if status == 1 and not reason.startswith(CLUMSY):
        return True, f"seen to fail: {reason}"
    survived = status == 0 and "passed" in result
    return False, "SURVIVED" if survived else f"NOT TRIED: pytest ended with {status}: {result}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="of the faults to try; by default all")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a test: a hang is seen too")
    parser.add_argument("--jobs", type=int, default=1, help="tests that run at a time")
    given = parser.parse_args()
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    start, survived = time.monotonic(), 0
    chosen = [m for m in mutants() if given.word in f"{m.fault} {m.file} {m.test}"]
    for plain, is_emulated in ((False, False), (True, False), (False, True)):
        tests = sorted({m.test for m in chosen if (m.plain, m.is_emulated) == (plain, is_emulated)})
        status, result = run(tests, plain=plain) if tests else (0, "")
        if status != 0:
            print(f"without any fault, pytest ends with {status}: {result}")
            return 1
    print("| fault | test | |\n|---|---|---|", flush=True)
    with ProcessPoolExecutor(max(1, given.jobs), mp_context=FORK) as pool:
        judged = pool.map(judge, chosen, [given.limit] * len(chosen))
        for mutant, (seen, how) in zip(chosen, judged, strict=True):
            survived += not seen
            cells = (cell.replace("|", r"\|") for cell in (mutant.fault, mutant.test, how))
            print(f"| {' | '.join(cells)} |", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(chosen)} faults, {len(chosen) - survived} seen, {survived} survived, in {seconds:.0f} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
