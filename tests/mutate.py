"""Mutation tests: inserts each fault of mutants.toml into a copy of the checkout and expects a test failure.

python tests/mutate.py             all faults, which takes minutes
python tests/mutate.py residual    the faults with this word in their sentence, file or test

The tests first run without any fault. The exit status is 1 if a test fails then, or if a fault survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PLAIN = "sage/ops/reference"
"""The file that is used only without the extension."""
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

    def put_into(self, folder: Path) -> None:
        """Apply the fault to the file in this folder."""
        path = folder / self.file
        path.write_text(path.read_text("utf-8").replace(self.old, self.new), "utf-8")


def mutants() -> list[Mutant]:
    """Return the list of faults."""
    listed = tomllib.loads((CHECKOUT / "tests" / "mutants.toml").read_text("utf-8"))
    return [Mutant(**entry) for entry in listed["mutant"]]


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
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy(Path(folder))
        if mutant:
            mutant.put_into(Path(folder))
        added = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "240"}
        env = {**os.environ, **added, **({"SAGE_NATIVE": "0"} if plain else {})}
        # Tests that only `make test-all` runs do not count.
        chosen = ["-m", "not thorough", *tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen]
        try:
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return None, ""
    lines = done.stdout.splitlines() or [done.stderr]
    return done.returncode, next((x for x in lines if x.startswith(("FAILED", "ERROR"))), lines[-1])


def judge(mutant: Mutant, limit: float) -> tuple[bool, str]:
    """Return whether the test detected the fault, and how."""
    status, said = run([mutant.test], plain=mutant.file.startswith(PLAIN), mutant=mutant, limit=limit)
    reason = said.partition(" - ")[2]
    if status is None:
        return True, f"hangs: seen after {limit:g} s"
    if status == 1 and not reason.startswith(CLUMSY):
        return True, f"seen to fail: {reason}"
    return False, "SURVIVED" if status == 0 else f"NOT TRIED: pytest ended with {status}: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="of the faults to try; by default all")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a test: a hang is seen too")
    parser.add_argument("--jobs", type=int, default=1, help="tests that run at a time")
    given = parser.parse_args()
    start, survived = time.monotonic(), 0
    chosen = [m for m in mutants() if given.word in f"{m.fault} {m.file} {m.test}"]
    for plain in (False, True):
        tests = sorted({m.test for m in chosen if m.file.startswith(PLAIN) == plain})
        status, said = run(tests, plain=plain) if tests else (0, "")
        if status != 0:
            print(f"without any fault, pytest ends with {status}: {said}")
            return 1
    print("| fault | test | |\n|---|---|---|", flush=True)
    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        judged = pool.map(lambda mutant: judge(mutant, given.limit), chosen)
        for mutant, (seen, how) in zip(chosen, judged, strict=True):
            survived += not seen
            cells = (cell.replace("|", r"\|") for cell in (mutant.fault, mutant.test, how))
            print(f"| {' | '.join(cells)} |", flush=True)
    seconds = time.monotonic() - start
    print(f"{len(chosen)} faults, {len(chosen) - survived} seen, {survived} survived, in {seconds:.0f} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
