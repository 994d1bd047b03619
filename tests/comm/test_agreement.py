"""Tests that ranks with different settings do not train, and that waiting ranks can be stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import PATIENCE, Launcher, Run, free_port, is_handled, outside, until

from sage.comm import store
from sage.comm.agreement import differences
from sage.config import Config
from sage.datasets.digits import Digits
from sage.train import fingerprint

FF = "digits-ff --steps 3 --data.limit-train 320 --timeout 60"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


def by_hand(
    launcher: Launcher,
    runs: Path,
    argvs: Sequence[str],
    tampers: Sequence[Callable[[], None] | None] = (None, None),
) -> list[Run]:
    """Ranks as started in shells, each with its own command."""
    port = free_port()
    return [
        launcher.start(
            argv,
            runs,
            tamper=tampers[rank],
            environment={
                "hostip": "127.0.0.1",
                "port": port,
                "rank": str(rank),
                "world_size": str(len(argvs)),
            },
        )
        for rank, argv in enumerate(argvs)
    ]


# Different.


def source(digits: str) -> None:
    checksum = fingerprint.checksum
    fingerprint.checksum = lambda root, files: (
        digits if root == fingerprint.PACKAGE else checksum(root, files)
    )


def data(digits: str) -> None:
    init = Digits.__init__

    @wraps(init)
    def changed(self: Digits, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)  # type: ignore[arg-type]
        self.checksums = {"digits": digits}

    setattr(Digits, "__init__", changed)  # noqa: B010


def test_ranks_with_different_settings_code_or_data_report_both_and_do_not_train(
    launcher: Launcher, tmp_path: Path
) -> None:
    cases: dict[str, tuple[str, str, Callable[[], None] | None, str]] = {
        "settings": (
            f"{FF} --reducer topk --density 0.1 --lr 0.1",
            f"{FF} --reducer topk --density 0.5 --lr 0.2",
            None,
            "reducer_options.density is 0.1 on rank 0 and 0.5 on rank 1; lr is 0.1 on rank 0 and 0.2 on",
        ),
        "source": (FF, FF, partial(source, "0123456789ab"), "and 0123456789ab on rank 1"),
        "data": (FF, FF, partial(data, "beef"), "and beef on rank 1"),
    }
    runs = {
        name: by_hand(launcher, tmp_path / name, argvs, (None, tamper))
        for name, (*argvs, tamper, _) in cases.items()
    }
    for name, (*_, message) in cases.items():
        for rank, run in enumerate(runs[name]):
            assert run.wait() == 2, f"{name}: {run.output}"
            assert message in run.output
            assert run.output.startswith(f"sage: rank {rank}: the ranks do not agree: ")
            assert len(run.output.splitlines()) == 1, run.output
        assert not list((tmp_path / name).glob("*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.3}, "lr is 0.1 on rank 0 and 0.3 on rank 1"),
        ({"seed": 1}, "seed is 0 on rank 0 and 1 on rank 1"),
        ({"reducer": "exact", "reducer_options": {}}, 'reducer is "topk" on rank 0 and "exact" on rank 1'),
        ({"guard": True}, "guard is false on rank 0 and true on rank 1"),
        ({"checkpoint_every": 3}, "checkpoint_every is null on rank 0 and 3 on rank 1"),
        ({"model_options": {"depth": 3}}, "model_options.depth is not given on rank 0 and 3 on rank 1"),
        ({"timeout": 7.0, "runs": Path("elsewhere"), "data_root": Path("there"), "slurm": {"mem": "1G"}}, ""),
    ],
)
def test_every_setting_that_matters_is_compared(changes: dict[str, Any], message: str) -> None:
    config = Config(workload="w", task="classify", model="feedforward", data="digits", reducer="topk", lr=0.1)
    facts = [fingerprint.facts(each, torch.device("cpu")) for each in (config, replace(config, **changes))]
    assert message in differences(dict(enumerate(facts)))
    assert bool(message) == bool(differences(dict(enumerate(facts))))


@pytest.mark.parametrize(
    "name", ["SAGE version", "source files", "torch version", "numpy version", "Python version"]
)
def test_another_version_of_the_software_is_a_difference(name: str) -> None:
    own = fingerprint.software()
    assert differences({0: own, 1: own}) == ""
    assert differences({0: own, 1: {**own, name: "another"}}).startswith(
        f"{name} is {own[name]} on rank 0 and"
    )


def test_another_commit_is_a_difference_only_with_another_source() -> None:
    own = fingerprint.software()
    assert differences({0: own, 1: {**own, "commit": "abc"}}) == ""
    assert "commit is" in differences({0: own, 1: {**own, "commit": "abc", "source files": "other"}})


def test_the_checksum_of_the_source_files_covers_every_part_and_each_byte(tmp_path: Path) -> None:
    names = {
        path.relative_to(fingerprint.PACKAGE).as_posix() for path in fingerprint._sources(fingerprint.PACKAGE)
    }
    assert {"train/run.py", "comm/wire.py", "reducers/topk.py", "jobs/submit.py", "models/resnet.py"} <= names
    (tmp_path / "a.py").write_text("x = 1")
    before = fingerprint.checksum(tmp_path, [tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("x = 2")
    assert fingerprint.checksum(tmp_path, [tmp_path / "a.py"]) != before


def test_settings_for_the_location_of_files_may_differ(launcher: Launcher, tmp_path: Path) -> None:
    for run in by_hand(launcher, tmp_path, [FF, f"{FF} --timeout 50"]):
        assert run.wait() == 0, run.output


def test_an_external_part_is_compared_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mine_of_two_files"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("FACTOR = 1\n")
    (package / "own.py").write_text(
        "from sage.reducers.exact import Exact\n\n\nclass Own(Exact):\n    pass\n\n\nREDUCER = Own\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(
        workload="w", task="classify", model="feedforward", data="digits", reducer="mine_of_two_files.own"
    )
    ((name, before),) = fingerprint.parts(config).items()
    assert name == "source of the reducer mine_of_two_files.own"
    (package / "helper.py").write_text("FACTOR = 2\n")
    assert fingerprint.parts(config)[name] != before
    assert fingerprint.parts(replace(config, reducer="topk")) == {}
    (package / "task.py").write_text(
        "from sage.tasks.classify import Classify\n\n\nclass Own(Classify):\n    pass\n\n\nTASK = Own\n"
    )
    with_task = replace(config, reducer="topk", task="mine_of_two_files.task")
    assert list(fingerprint.parts(with_task)) == ["source of the task mine_of_two_files.task"]


@settings(max_examples=examples(50))
@given(
    facts=st.dictionaries(st.integers(0, 20), st.dictionaries(st.text(), st.text(), max_size=9), max_size=5)
)
def test_any_facts_of_the_ranks_give_one_printable_line(
    facts: dict[int, dict[str, str]],
) -> None:
    line = differences(facts)
    assert line.isprintable()
    assert len(line) < 5000
    same = all(each == next(iter(facts.values())) for each in facts.values())
    assert line == "" or not same


@settings(max_examples=examples(50))
@given(text=st.text() | st.binary().map(lambda raw: raw.decode(errors="replace")))
def test_any_content_of_the_store_is_read_as_facts_of_strings(text: str) -> None:
    found = store._parsed(text)
    assert all(isinstance(each, str) for item in found.items() for each in item)


# Waiting.


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_handles_signals_at_once(
    launcher: Launcher, tmp_path: Path, rank: int
) -> None:
    waiting = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        place = {"hostip": "127.0.0.1", "port": free_port(), "rank": str(rank), "world_size": "2"}
        runs = tmp_path / number.name
        run = launcher.start(
            FF.replace("60", "300"),
            runs,
            environment=place,
            tamper=partial(say_when_it_waits, tmp_path / f"{number}"),
        )
        waiting.append((number, run))
    for number, run in waiting:
        until((tmp_path / f"{number}").exists)
        os.kill(run.process.pid, number)
    for number, run in waiting:
        assert run.wait() == 75, run.output
        assert run.output == (
            f"sage: rank {rank}: stopped by {number.name} before the first step; "
            "rerun the same command to start again\n"
        )


def say_when_it_waits(path: Path) -> None:
    meet = store._open_store

    def recorded(*arguments: object, **options: object) -> object:
        path.touch()
        return meet(*arguments, **options)  # type: ignore[arg-type]

    setattr(store, "_open_store", recorded)  # noqa: B010


def test_sigint_is_handled_even_if_the_shell_started_the_run_with_it_ignored(tmp_path: Path) -> None:
    place = {"hostip": "127.0.0.1", "port": free_port(), "rank": "1", "world_size": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sage", "run", *FF.split(), "--runs", str(tmp_path)],
        env={**outside(), **place, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_handled(process.pid, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 75
    finally:
        process.kill()
        process.wait()
