"""Tests that a run's records can be read, whatever happened while they were written."""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sage.cli.run import parse_run
from sage.records.manifest import manifest
from sage.records.record import NullRecorder, Recorder, read_metrics, recorder
from sage.storage import write_json
from sage.train.run import main as run_main


def train(record: Recorder, *, steps: range, steps_per_epoch: int = 10) -> None:
    """A loop that records like the real one, with an evaluation after each epoch."""
    for step in steps:
        record.step(
            step=step,
            epoch=step // steps_per_epoch,
            loss=1 / (step + 1),
            lr=0.1,
            density_asked=0.01,
            density_had=0.012,
            residual_norm=2.0,
            gradient_norm=3.0,
            seconds=0.05,
            bytes={"values": 400, "indices": 800},
            wire_sent=3600,
            wire_received=3600,
        )
        if (step + 1) % steps_per_epoch == 0:
            evaluate(record, step + 1, steps_per_epoch)


def evaluate(record: Recorder, done: int, steps_per_epoch: int = 10) -> None:
    accuracy = done / (done + 10)
    epoch = done / steps_per_epoch
    record.epoch(epoch=epoch, step=done, train_loss=1 / done, metrics={"accuracy": accuracy}, seconds=1.0)


def seen(folder: Path, kind: str) -> list[int]:
    return [each["step"] for each in read_metrics(folder) if each["kind"] == kind]


def test_metrics_are_one_strict_json_object_per_line(tmp_path: Path) -> None:
    record = Recorder(tmp_path)
    record.step(step=0, epoch=0, loss=math.nan, bytes={"values": 4}, threshold=math.inf)
    record.event("stopped", step=1, reason="signal\n15")
    record.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    step, event = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert step == {
        "kind": "step",
        "step": 0,
        "epoch": 0,
        "loss": None,
        "bytes": {"values": 4},
        "threshold": None,
    }
    assert event["event"] == "stopped"
    assert event["reason"] == "signal\n15"


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    record = Recorder(tmp_path)
    train(record, steps=range(3))
    assert seen(tmp_path, "step") == [0, 1, 2]
    record.close()


@pytest.mark.parametrize(
    "torn", [b"{", b'{"kind":"step","step":9}', b"\x00" * 512, b'{"kind":"step","st\xc3']
)
def test_an_incomplete_last_line_is_ignored_and_then_removed(tmp_path: Path, torn: bytes) -> None:
    record = Recorder(tmp_path)
    train(record, steps=range(4))
    record.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert seen(tmp_path, "step") == [0, 1, 2, 3]
    record = Recorder(tmp_path)
    train(record, steps=range(4, 6))
    record.close()
    assert seen(tmp_path, "step") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"{\n", b"\x00\x00\n", b"[]\n", b"\n", b'{"step": 1}\n'])
def test_damage_that_no_crash_causes_is_an_error_with_file_and_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"kind":"step","step":0,"epoch":0}\n'
    path.write_bytes(whole + damage + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("checkpoint", [0, 1, 9, 10, 11, 20, 25])
def test_a_run_resumed_from_a_checkpoint_records_the_same_as_an_uninterrupted_one(
    tmp_path: Path, checkpoint: int
) -> None:
    whole, broken = Recorder(tmp_path / "whole"), Recorder(tmp_path / "broken")
    train(whole, steps=range(30))
    whole.close()
    train(broken, steps=range(25))
    broken.event("stopped", step=25)
    broken.close()
    broken = Recorder(tmp_path / "broken")
    broken.rewind(checkpoint)
    broken.event("resumed", step=checkpoint)
    train(broken, steps=range(checkpoint, 30))
    broken.close()
    measured = [each for each in read_metrics(tmp_path / "broken") if each["kind"] != "event"]
    assert measured == read_metrics(tmp_path / "whole")
    assert seen(tmp_path / "broken", "event") == [25, checkpoint]
    for tag in ("train/loss", "eval/accuracy"):
        assert scalars(tmp_path / "broken", tag) == scalars(tmp_path / "whole", tag)


def test_an_evaluation_is_recorded_once_whether_the_checkpoint_is_before_or_after_it(tmp_path: Path) -> None:
    record = Recorder(tmp_path)
    train(record, steps=range(20))
    record.rewind(10)
    evaluate(record, 10)
    train(record, steps=range(10, 20))
    record.close()
    assert seen(tmp_path, "epoch") == [10, 20]
    assert [step for step, _ in scalars(tmp_path, "eval/accuracy")] == [9, 19]


def test_tensorboard_files_hold_scalars_histograms_and_hyperparameters(tmp_path: Path) -> None:
    record = Recorder(tmp_path)
    train(record, steps=range(10))
    record.step(step=10, epoch=1, loss=0.1, seconds=0.1, phases={"select": 0.02}, density_asked=None)
    record.histogram("gradient/abs", torch.tensor([0.0, 1.0, 2.0, math.nan, math.inf]), 10)
    record.histogram("gradient/abs", torch.tensor([math.nan]), 11)
    record.hparams({"lr": 0.1, "seed": None, "reducer_options": {"densities": [0.1, 0.2]}}, {"accuracy": 0.5})
    record.close()
    events = accumulate(tmp_path)
    tags = events.Tags()
    expected = (
        "train/loss train/lr density/asked density/had residual_norm gradient_norm wire/sent wire/received"
    )
    expected += " seconds/step bytes/values bytes/indices phases/select eval/accuracy final/accuracy"
    assert set(tags["scalars"]) == set(expected.split())
    assert tags["histograms"] == ["gradient/abs"]
    (histogram,) = events.Histograms("gradient/abs")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.max) == (10, 3, 2.0)
    assert len(events.Scalars("density/asked")) == 10
    started = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in (b"lr", b"seed", b"reducer_options.densities"):
        assert name in started


@pytest.mark.parametrize("controller", ["sage", "feedback", "quantile"])
def test_tensorboard_has_density_target_threshold_bytes_loss_and_accuracy_of_a_run(
    tmp_path: Path, controller: str
) -> None:
    asked = ["--reducer", "sage", "--controller", controller, "--density", "0.05", "--batch-size", "8"]
    size = ["--steps", "3", "--workers-in-process", "--runs", str(tmp_path)]
    with ThreadPoolExecutor(1) as pool:  # in the main thread it would replace the tests' signal handlers
        assert pool.submit(run_main, parse_run(["digits-ff", *asked, *size])).result() == 0
    (run,) = tmp_path.iterdir()
    steps = [record for record in read_metrics(run) if record["kind"] == "step"]
    for field, tag in {
        "density_asked": "density/asked",
        "density_had": "density/had",
        "threshold": "threshold",
        "loss": "train/loss",
        "wire_sent": "wire/sent",
    }.items():
        drawn = dict(scalars(run, tag))
        assert drawn == pytest.approx({step["step"]: step[field] for step in steps})
        assert len(drawn) == 3
    assert [value for _, value in scalars(run, "density/asked")] == pytest.approx([0.05] * 3)
    assert dict(scalars(run, "bytes/values")) == {step["step"]: step["bytes"]["values"] for step in steps}
    assert len(scalars(run, "eval/accuracy")) == 1


def test_one_writer_creates_one_file_and_no_folders(tmp_path: Path) -> None:
    record = Recorder(tmp_path)
    train(record, steps=range(10))
    record.hparams({"lr": 0.1}, {"accuracy": 0.5})
    record.finish({"steps": 10})
    (only,) = (tmp_path / "tensorboard").iterdir()
    assert only.name.startswith("events.out.tfevents")
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 10}


def test_only_rank_0_writes(tmp_path: Path) -> None:
    record = recorder(tmp_path / "run", rank=1)
    assert isinstance(record, NullRecorder)
    train(record, steps=range(10))
    record.rewind(5)
    record.event("resumed", step=5)
    record.histogram("gradient/abs", torch.ones(3), 5)
    record.hparams({"lr": 0.1}, {"accuracy": 0.5})
    record.finish({"steps": 10})
    record.close()
    assert list(tmp_path.iterdir()) == []


def test_json_files_are_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"best": 0.5, "folder": tmp_path, "final": {"perplexity": math.inf}})
    assert json.loads(path.read_text()) == {
        "best": 0.5,
        "folder": str(tmp_path),
        "final": {"perplexity": None},
    }
    with pytest.raises(TypeError):
        write_json(path, {"best": torch.ones(1)})
    assert json.loads(path.read_text())["best"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def test_the_manifest_has_software_and_machine_but_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JWT", "secret")
    monkeypatch.setenv("hostip", "10.0.0.1")
    write_json(tmp_path / "manifest.json", manifest({"seed": 3, "lr": 0.1}, {"train.bin": "ab12"}))
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["environment"].items() >= {"SLURM_JOB_ID": "7", "hostip": "10.0.0.1"}.items()
    assert "secret" not in json.dumps(written)
    assert (written["seed"], written["config"]["lr"], written["checksums"]) == (3, 0.1, {"train.bin": "ab12"})
    assert written["versions"]["torch"] == torch.__version__
    assert written["machine"]["cores"] > 0
    assert written["machine"]["memory_bytes"] > 2**20
    assert set(written["git"]) == {"commit", "dirty"}


def test_tensorboard_serves_the_run(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "digits-topk-0123abcd")
    train(record, steps=range(10))
    record.close()
    with tensorboard_server(tmp_path) as address:
        run = "digits-topk-0123abcd/tensorboard"
        deadline = time.monotonic() + 60
        while run not in fetch(address, "data/runs"):
            assert time.monotonic() < deadline, "TensorBoard did not find the run"
            time.sleep(0.2)
        points = fetch(address, "data/plugin/scalars/scalars", run=run, tag="train/loss")
    assert [step for _, step, _ in points] == list(range(10))
    assert [value for _, _, value in points] == pytest.approx([1 / (step + 1) for step in range(10)])


def accumulate(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = accumulate(folder)
    return (
        [(each.step, each.value) for each in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
    )


@contextmanager
def tensorboard_server(logdir: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    server = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 60
        while not answers(address):
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < deadline, "TensorBoard did not start within a minute"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def answers(address: str) -> bool:
    try:
        fetch(address, "data/environment")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def fetch(address: str, path: str, **query: str) -> Any:
    # A proxy of the environment does not reach this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)
