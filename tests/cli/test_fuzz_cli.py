"""Tests that random configurations and command lines end with status 0, or with 2 and one line; none raises.

No training starts: runs are only printed, sweeps planned, and functions that measure or check are replaced.
"""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from datetime import time as clock
from pathlib import Path
from typing import Any

import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage import registry
from sage.cli.bench import BENCHES
from sage.cli.main import COMMANDS, main
from sage.config import annotations, workloads

SECONDS = 60
"""Seconds that a case may take on a busy machine; a case that hangs takes longer."""

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
"""Health checks on slow generation of inputs, which is not an error of the command line."""

NAMES = [*annotations(), "reducers", "grid", "parallel", "max_requeues"]
NAMES += ["pilot", "targets", "chosen"]
PARTS = [name for room in registry.EXPORTS for name in registry.names(room)]

# fmt: off
ODD = [
    ".", "..", "/", "~", "~/x", "~nobody-here/x", "-", "--", "-1", "0", "1e999", "nan", "-inf", "None",
    "true", "topk+", "+", "topk+topk", "topk+terngrad", "./none.py", "a.b", ".a", "a..b", "1e300",
    "-1e300", "0x10", "1_0", "model", "bucket:0", "bucket:1e9", "a/b", "λ",
]
# fmt: on
odd_texts = st.sampled_from([*ODD, "", " ", "9" * 5000, "x" * 3000, "\u202eü", "\x1b[31m"])
extremes = st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1e300, 5e-324])
numbers = st.integers() | st.floats() | extremes
texts = odd_texts | st.sampled_from(PARTS + list(workloads())) | st.text(max_size=12)
scalars = numbers | texts | st.booleans() | st.none()
words = scalars.map(str).filter(lambda word: "\0" not in word)


def flags(names: list[str]) -> st.SearchStrategy[list[str]]:
    """Flags with values; some are misspelled, some lack a value, and some have one too many."""
    spelled = st.sampled_from(names) | st.text("abcdefghijklmnopqrstuvwxyz-_.", max_size=12)
    one = st.tuples(spelled, st.lists(words, max_size=2), st.booleans()).map(_spell)
    return st.lists(one, max_size=4).map(lambda parts: [word for part in parts for word in part])


def _spell(drawn: tuple[str, list[str], bool]) -> list[str]:
    name, values, joined = drawn
    flag = "--" + name.replace("_", "-")
    return [f"{flag}={values[0]}"] if joined and values else [flag, *values]


RUN_FLAGS = [name for name in annotations() if not name.endswith("_options")]
RUN_FLAGS += ["density", "model.depth", "data.limit-train", "values", "help", "config"]


def _run(drawn: tuple[list[str], list[str]]) -> list[str]:
    return ["run", *drawn[0], *drawn[1], "--print-config"]


runs = st.tuples(st.lists(texts | st.just("digits"), max_size=1), flags(RUN_FLAGS)).map(_run)


def verb(name: str, *fixed: str, first: st.SearchStrategy[str] | None = None, names: str = "") -> Any:
    """A command, a word, fixed arguments that prevent a start, and flags of these names."""
    parts = [st.just([name]), st.lists(first, min_size=1, max_size=1) if first is not None else st.just([])]
    parts += [st.just(list(fixed)), flags([*names.split(), "help"])]
    return st.tuples(*parts).map(lambda drawn: [word for part in drawn for word in part])


def wordy(name: str, choices: list[str]) -> Any:
    """A command, and words."""
    return st.lists(st.sampled_from(choices) | words, max_size=3).map(lambda rest: [name, *rest])


others = st.one_of(
    st.sampled_from(list(COMMANDS)).map(lambda name: [name, "--help"]),
    st.lists(words.filter(lambda word: word not in COMMANDS), min_size=1, max_size=3),
    wordy("list", ["--help"]),
    wordy("data", ["list", "prepare", "digit", "--help", "-h"]),
    wordy("cancel", ["--runs", "digits-ff"]),
    verb("report", "nowhere", names="output"),
    verb("compare", "nowhere", "nowhere", names="factor"),
    verb("predict", "nowhere", names="plan world-size bandwidth latency bucket-mb"),
    verb("target", "none.toml", names="runs late"),
    verb("status", names="runs"),
    verb("logs", first=words, names="runs rank"),
    verb("submit", "none.toml", names="runs parallel max-requeues"),
    verb("conform", first=texts, names="density world-sizes"),
    verb("bench", "--steps", "0", first=st.sampled_from([*BENCHES, "x"]), names="steps densities rules mib"),
    verb("calibrate", first=texts | st.just("digits"), names="reducers densities steps seconds output"),
    verb("advise", first=texts | st.just("digits"), names="reducers densities steps minutes output"),
    verb("launch", "--hosts", "none.txt", names="timeout port"),
    verb("doctor", "--hosts", "none.txt", names="timeout port ranks"),
)
command_lines = (runs | others).map(lambda argv: [word for word in argv if "\0" not in word])

times = st.dates() | st.datetimes() | st.times()
values = st.recursive(
    scalars | times,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=6,
)
keys = st.sampled_from(NAMES) | st.text(max_size=6)
BASE = 'workload = "digits-ff"\n'
PLAIN = 'task = "classify"\nmodel = "feedforward"\ndata = "digits"\n'


def toml(value: Any) -> str:
    """A value in TOML; values that TOML cannot express, such as None, become invalid TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(
            f"\\U{ord(c):08X}" if ord(c) < 32 or c in '"\\\x7f' or 0xD800 <= ord(c) < 0xE000 else c
            for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, date | clock):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return str(value)


def written(table: dict[str, Any]) -> str:
    """The lines of a table."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


table = st.dictionaries(keys, values, max_size=4)
tables = st.tuples(table, st.lists(table, max_size=2)).map(
    lambda drawn: "[[grid]]\n".join(map(written, [drawn[0], *drawn[1]]))
)
contents = st.one_of(
    tables.map(lambda text: (PLAIN + text).encode("utf-8", "replace")),
    tables.map(lambda text: (BASE + text).encode("utf-8", "replace")),
    tables.map(lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "replace")),
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"a = " + b"[" * 3000, b"[" * 200 + b"a" + b"]" * 200, b"\x7fELF\0", b"x = 1979-05-27\n"]
    ),
)
files = st.tuples(
    contents,
    st.sampled_from(
        [
            ["run", "FILE.toml", "--print-config"],
            ["run", "digits", "--config", "FILE.toml", "--print-config"],
            ["submit", "FILE.toml", "--dry-run", "--cluster", "local"],
            ["status", "FILE.toml"],
            ["submit", "FILE.toml", "--pilot", "--dry-run", "--cluster", "local"],
            ["target", "FILE.toml"],
            ["report", "FILE.toml"],
        ]
    ),
)


@pytest.fixture(scope="module", autouse=True)
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder; functions that train, download or measure are replaced."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        for function in ("sage.train.run.main", "sage.testing.conformance.main"):
            patch.setattr(function, lambda *_: 0)
        patch.setattr("sage.bench.compress.inputs", lambda *_: [])
        for command in ("sage.bench.calibrate.main", "sage.bench.advise.main.main"):
            patch.setattr(command, lambda *_: 0)
        yield folder


def ends(argv: list[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command line, in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        start = time.monotonic()
        status = main(argv)
        assert time.monotonic() - start < SECONDS, argv
    return status, out.getvalue(), err.getvalue()


def check(argv: list[str], status: int, err: str) -> None:
    """Assert what holds for every command line."""
    assert "Traceback" not in err, err
    assert status in (0, 2), (argv, status, err)
    if status == 2:
        assert err.count("\n") == 1, err
        assert err.startswith("sage"), err
        assert err.rstrip("\n").isprintable(), err


@settings(max_examples=examples(200), suppress_health_check=SLOW)
@given(argv=command_lines)
def test_any_command_line_ends_with_0_or_with_2_and_one_line(argv: list[str]) -> None:
    status, _, err = ends(argv)
    check(argv, status, err)


@settings(max_examples=examples(100), suppress_health_check=SLOW)
@given(given_file=files)
def test_any_file_ends_with_0_or_with_2_and_one_line(given_file: tuple[bytes, list[str]]) -> None:
    content, argv = given_file
    Path("FILE.toml").write_bytes(content)
    status, _, err = ends(argv)
    check(argv, status, err)


@settings(max_examples=min(200, examples(3)), suppress_health_check=SLOW)
@given(argv=command_lines)
def test_any_command_line_as_a_process(argv: list[str]) -> None:
    if argv[0] in ("conform", "bench", "calibrate", "advise"):
        argv = [argv[0], "--help"]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "sage", *(word.encode("utf-8", "surrogateescape") for word in argv)],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        timeout=2 * SECONDS,
        check=False,
    )
    check(argv, done.returncode, done.stderr.decode("utf-8", "replace"))
