"""Tests that trackers get the figures of a run, and that none can end, change or hold up a run."""

import importlib
import json
import math
import re
import signal
import struct
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call

from sage.cli.run import parse_run
from sage.config import Config, load
from sage.records import tracker_process, tracking
from sage.records.record import NullRecorder, Recorder, read_metrics, recorder
from sage.train.run import main as run_main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "track.md"
RESULT = {"workload": "digits-ff", "metric": "accuracy", "final": {"accuracy": 0.75}, "steps": 20}

TRACKER = """
import os, time
PACKAGES = {packages!r}
class Tracker:
    id = "1"
    def __init__(self, start):
        {start}
    def scalars(self, values, step):
        {scalars}
    def histogram(self, name, counts, edges, step):
        pass
    def result(self, result):
        pass
    def close(self, *, is_finished):
        {close}
TRACKER = Tracker
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a tracker and returns its name."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))

    def write(name: str, text: str = "", *, packages: tuple[str, ...] = (), **methods: str) -> str:
        path = tmp_path / "modules" / f"of_{tmp_path.name}" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        bodies = {method: methods.get(method, "pass") for method in ("start", "scalars", "close")}
        path.write_text(text or TRACKER.format(packages=packages, **bodies))
        importlib.invalidate_caches()
        return f"of_{tmp_path.name}.{name}"

    return write


def config_of(folder: Path, *track: str) -> Config:
    return replace(load("digits-ff"), runs=folder / "runs", track=track)


def record_steps(record: Recorder, steps: range, *, evaluate: bool = True) -> None:
    """Record like the training loop, with a histogram of every tenth step."""
    for step in steps:
        if step % 10 == 0:
            record.histogram("gradient/abs", torch.tensor([0.0, 1.0, 3.0, math.nan]), step)
        record.step(step=step, epoch=0, loss=1 / (step + 1), bytes={"values": 4 * step}, density_asked=None)
    if evaluate:
        record.epoch(epoch=1, step=steps.stop, train_loss=1.0, metrics={"accuracy": 0.5}, seconds=1.0)


def tracked(config: Config, steps: range = range(20)) -> Path:
    """Record a finished run; return its folder."""
    record = recorder(config.folder, 0, config)
    record_steps(record, steps)
    record.finish(RESULT)
    record.close()
    return config.folder


def rows_of(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the rows of the only .wandb file below a folder by step; -2: configuration, -1: summary.

    wandb 0.31 has no reader in Python any more. The file is a log as LevelDB's: blocks of 32 KiB, and chunks
    with a checksum, a length and a type; the content is messages of wandb's own protocol.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parse = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString
    (path,) = (path for path in folder.rglob("*.wandb") if path.is_file())
    content, at, message = path.read_bytes(), 7, b""
    rows: dict[int, dict[str, Any]] = {-1: {}}
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, chunk = struct.unpack_from("<HB", content, at + 4)
        message += content[at + 7 : at + 7 + size]
        at += 7 + size
        if chunk not in (1, 4):  # whole, or the last part
            continue
        found, message = parse(message), b""
        if found.HasField("run"):
            rows[-2] = {
                "id": found.run.run_id,
                "name": found.run.display_name,
                **values_of(found.run.config.update),
            }
        elif found.HasField("history"):
            values = values_of(found.history.item)
            rows[values["_step"]] = values
        elif found.HasField("summary"):
            rows[-1] |= values_of(found.summary.update)
    return rows


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.slow
def test_weights_and_biases_gets_every_figure_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = config_of(tmp_path, "wandb")
    folder = tracked(config)
    assert "sage:" not in capfd.readouterr().err
    rows = rows_of(folder / "trackers" / "wandb")
    for step in range(20):
        assert rows[step]["train/loss"] == pytest.approx(1 / (step + 1))
        assert rows[step]["bytes/values"] == 4 * step
    assert rows[19]["eval/accuracy"] == 0.5
    assert [step for step in rows if "gradient/abs.values" in rows[step] and step >= 0] == [0, 10]
    assert sum(rows[10]["gradient/abs.values"]) == 3
    assert rows[-1]["final/accuracy"] == 0.75
    assert rows[-1]["result/steps"] == 20
    start = rows[-2]
    assert (start["name"], start["lr"], start["hash"]) == (folder.name, config.lr, config.hash)
    assert start["id"] == (folder / "trackers" / "wandb" / "id").read_text().strip()


@pytest.mark.slow
def test_weights_and_biases_writes_files_where_it_cannot_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key may be
    folder = tracked(config_of(tmp_path, "wandb"))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("sage: the tracker wandb cannot send: No API key configured.")
    (path,) = (folder / "trackers").rglob("offline-run-*")
    assert line.endswith(f" It writes files instead, for `wandb sync {path}`")
    assert rows_of(path)[19]["eval/accuracy"] == 0.5


@pytest.mark.slow
def test_mlflow_gets_every_figure_once_also_of_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker_process, "STOP_SECONDS", 60.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests of trackers")
    config = config_of(tmp_path, "mlflow")
    record = recorder(config.folder, 0, config)
    record_steps(record, range(12), evaluate=False)
    record.close()
    record = recorder(config.folder, 0, config)
    record.rewind(7)
    record_steps(record, range(7, 20))
    record.finish(RESULT)
    record.close()
    assert "sage:" not in capfd.readouterr().err
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow: Any = importlib.import_module("mlflow")
        client = mlflow.MlflowClient((config.runs / "mlruns").as_uri())
        experiment = client.get_experiment_by_name("tests of trackers")
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, "train/loss")
        artefacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert sorted(each.step for each in history) == [*range(20)]
    assert {each.step: each.value for each in history} == {step: 1 / (step + 1) for step in range(20)}
    assert run.info.run_name == config.folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == str(config.lr)
    assert (
        run.data.metrics.items() >= {"eval/accuracy": 0.5, "final/accuracy": 0.75, "result/steps": 20}.items()
    )
    counts = json.loads((artefacts / "histograms/gradient/abs/00000010.json").read_text())["counts"]
    assert (len(counts), sum(counts)) == (tracker_process.BINS, 3)
    assert json.loads((artefacts / "result.json").read_text()) == RESULT


def test_the_tracker_of_the_page_gets_the_losses_of_a_real_run_from_rank_0_only(
    tmp_path: Path, own: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    name = own("lines", text)
    size = ["--steps", "3", "--batch-size", "8", "--workers-in-process", "--runs", str(tmp_path / "runs")]
    config = parse_run(["digits-ff", *size, "--track", name])
    assert config.hash == parse_run(["digits-ff", *size]).hash
    with ThreadPoolExecutor(1) as pool:  # in the main thread it would replace the tests' signal handlers
        assert pool.submit(run_main, config).result() == 0
    assert "the tracker" not in capfd.readouterr().err
    lines = (config.folder / "trackers" / name / "losses.jsonl").read_text().splitlines()
    steps = [record for record in read_metrics(config.folder) if record["kind"] == "step"]
    assert [json.loads(line) for line in lines] == [[step["step"], step["loss"]] for step in steps]


def test_a_run_that_resumes_hands_the_tracker_its_earlier_name(tmp_path: Path, own: Any) -> None:
    note = "open(start.folder / 'starts', 'a').write(f'{start.earlier} ')"
    config = config_of(tmp_path, own("notes", start=note))
    for _ in range(2):
        record = recorder(config.folder, 0, config)
        record.close()
    assert (config.folder / "trackers" / config.track[0] / "starts").read_text() == "None 1 "


@pytest.mark.parametrize(
    ("methods", "why"),
    [
        ({"start": "raise RuntimeError('no\\nroute to host')"}, "has failed: RuntimeError: no route to host"),
        ({"scalars": "raise SystemExit(3)"}, "has failed: SystemExit: 3"),
        ({"close": "1 / 0"}, "has failed: ZeroDivisionError: division by zero"),
        ({"scalars": "os._exit(0)"}, "has ended with status 0"),
        ({"scalars": "os.kill(os.getpid(), 9)"}, "has ended by signal 9"),
        ({"start": "time.sleep(600)"}, "has not closed within 1 s"),
        ({"close": "time.sleep(600)"}, "has not closed within 1 s"),
    ],
    ids=["start", "step", "close", "exit", "kill", "hangs", "hangs at the end"],
)
def test_a_tracker_that_fails_or_hangs_costs_one_line_and_nothing_of_the_run(
    tmp_path: Path,
    own: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    methods: dict[str, str],
    why: str,
) -> None:
    hangs = "sleep" in "".join(methods.values())
    monkeypatch.setattr(tracker_process, "FINISH_SECONDS", 1.0 if hangs else 60.0)
    config = config_of(tmp_path, own("faulty", **methods))
    folder = tracked(config, range(1000) if hangs else range(20))  # more than a pipe holds
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        f"sage: the tracker {config.track[0]} {why}; the run is not affected. Its output: "
    )
    steps = [record["step"] for record in read_metrics(folder) if record["kind"] == "step"]
    assert steps == [*range(1000 if hangs else 20)]
    assert json.loads((folder / "result.json").read_text()) == RESULT


def test_a_tracker_that_does_not_keep_up_is_given_up(
    tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker_process, "MOST_BYTES", 2**15)
    config = config_of(tmp_path, own("slow", start="time.sleep(600)"))
    record = recorder(config.folder, 0, config)
    record_steps(record, range(1500))
    assert "is more than 0 MiB of figures behind" in capfd.readouterr().err
    record.finish(RESULT)
    assert capfd.readouterr().err == ""


def test_a_tracker_survives_the_signals_of_a_job_and_closes_when_the_run_has_gone(
    tmp_path: Path, own: Any
) -> None:
    close = "print('closed', is_finished)"
    config = config_of(tmp_path, own("patient", close=close))
    (tracker,) = tracker_process.trackers_of(config)
    process = tracker._process
    assert process is not None
    assert process.stdin is not None
    state = config.folder / "trackers" / config.track[0]
    tracker.scalars({"train/loss": 1.0}, 0)
    while not (state / "id").exists():
        assert process.poll() is None
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process.send_signal(number)
    process.stdin.write(b'{"scalars": {"train')
    process.stdin.close()  # as if the run had been killed
    assert process.wait(30) == 0
    assert process.stdout is not None
    process.stdout.close()
    assert (state / "output.log").read_text() == "closed False\n"


def test_other_ranks_start_no_tracker(tmp_path: Path, own: Any) -> None:
    config = config_of(tmp_path, own("never"))
    assert isinstance(recorder(config.folder, 1, config), NullRecorder)
    assert not config.folder.exists()


def test_a_tracker_that_cannot_work_is_refused_before_training(
    tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*track: str) -> None:
        assert call("run", "digits-ff", "--runs", str(tmp_path / "runs"), "--track", *track) == 2

    with pytest.raises(ValueError, match="needs no_such_package, not installed here: pip install no_such"):
        run(own("needy", packages=("no_such_package", "json")))
    with pytest.raises(ValueError, match="no tracker is called 'wandbb'; did you mean 'wandb'"):
        run("wandbb")
    with pytest.raises(ValueError, match="track has 'mlflow' 2 times: name each tracker once"):
        run("mlflow", "mlflow")
    with pytest.raises(ValueError, match="exports no TRACKER"):
        run(own("empty", "x = 1\n"))
    with pytest.raises(ValueError, match="cannot be imported: SyntaxError"):
        run(own("broken", "x =\n"))
    # A folder that wandb has created is not the package.
    (tmp_path / "modules" / "sage_no_package").mkdir()
    monkeypatch.setattr("sage.records.trackers.wandb.PACKAGES", ("sage_no_package",))
    with pytest.raises(ValueError, match=r"pip install 'sage-bench\[wandb\]', or leave --track wandb out"):
        run("wandb")
    assert not (tmp_path / "runs").exists()


def test_every_tracker_has_an_extra_of_its_name_and_is_on_the_page() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert tracking.names() == ["mlflow", "wandb"]
    for name in tracking.names():
        assert re.search(rf"^{name} = \[", project, re.MULTILINE), name
        assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")
