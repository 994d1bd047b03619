"""Tests of runs at a URL against moto's S3 server: nothing is lost, whatever the server does."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from launcher import PATIENCE, Brake, Launcher, until
from s3_server import BUCKET, Server

from sage.cli.main import main
from sage.records import upload
from sage.storage.remote import checksums
from sage.storage.remote.store import Store

URL = f"s3://{BUCKET}/runs"
RUN = "digits-ff --reducer exact --steps 3 --checkpoint-every 1 --data.limit-train 64 --data.limit-test 20"

SWEEP = """
workload = "digits-ff"
reducer = "exact"
steps = 1
workers_in_process = true

[data_options]
limit_train = 64
limit_test = 20
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    if missing := [name for name in ("s3fs", "moto", "flask") if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    server = Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def here(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with the variables of the server; returns the staging folder of the URL."""
    monkeypatch.chdir(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "runs" / "s3" / BUCKET / "runs"


def impatient(then: partial[None]) -> None:
    """Make this process upload all the time, and say its first failure."""
    for name, value in {"FIRST": 0.0, "PERIOD": 0.05, "SHARE": 0.0, "LONGEST": 0.1, "FAILURES": 1}.items():
        setattr(upload, name, value)
    upload.AT_END[0] = PATIENCE
    then()


def only(runs: Path) -> Path:
    """The only run of a folder."""
    (folder,) = (path for path in runs.iterdir() if path.is_dir() and path.name[0] != ".")
    return folder


def assert_equal(run: Path) -> None:
    """Assert that the bucket has each file of a run, with its content, and lists its checksum."""
    store = Store(URL)
    listed = json.loads(store.read(f"{run.name}/checksums.json"))["files"]
    assert {"config.json", "metrics.jsonl", "result.json"} < set(checksums.files(run)) == set(listed)
    for name in checksums.files(run):
        content = (run / name).read_bytes()
        assert store.read(f"{run.name}/{name}") == content
        assert listed[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_nothing_is_lost_if_the_server_is_killed_and_restarted_during_a_run(
    server: Server, tmp_path: Path, here: Path
) -> None:
    brake, launcher = Brake(tmp_path / "brake"), Launcher(tmp_path)
    try:
        run = launcher.start(
            RUN,
            URL,  # type: ignore[arg-type]
            tamper=partial(impatient, brake.before_step(2)),  # type: ignore[arg-type]
            environment={**server.environment, "SAGE_STAGING_DIR": str(tmp_path / "runs")},
        )
        brake.paused_ranks()
        store = Store(URL)
        until(lambda: any(name.endswith("/index.json") for name in store.sizes()))
        server.kill()
        brake.release()
        until(lambda: "not uploaded" in run.output)
        server.start()  # without what it had
        assert run.wait() == 0, run.output
    finally:
        launcher.close()
    assert run.output.count("not uploaded") == 1, run.output
    assert f"uploaded: {URL}/{only(here).name}\n" in run.output
    assert_equal(only(here))


def test_with_wrong_credentials_a_run_ends_well_and_sync_uploads_it_later(
    server: Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.check_credentials(True)
    argv = ["run", *RUN.split(), "--workers-in-process", "--seed", "1", "--runs", URL]
    try:
        assert main(argv) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if URL in line]
        assert len(lines) == 1
        assert "not uploaded" in lines[0]
        assert "`sage sync runs/s3/bucket/runs`" in lines[0]
        assert main(["sync"]) == 2  # the same command would fail again
        assert "1 of 1 runs" in capsys.readouterr().err
    finally:
        server.check_credentials(False)
    run = only(here)
    num_files = len(checksums.files(run))
    assert main(["sync"]) == 0
    assert f"1 run, {num_files} files" in (first := capsys.readouterr().out)
    assert f"of which {num_files} (" in first
    assert_equal(run)
    assert main(["sync", URL]) == 0
    assert "of which 0 (0 bytes) were uploaded now" in capsys.readouterr().out

    # What is read at the URL is what is here.
    texts = []
    for path in (f"{URL}/{run.name}", str(run)):
        assert main(["report", path, "--output", "report", "--json"]) == 0
        texts.append(capsys.readouterr().out)
        assert main(["status", path.removesuffix(f"/{run.name}"), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)["runs"]
        texts[-1] += json.dumps([one for one in shown if one["run"] == run.name])
    assert texts[0].replace("runs/.copies/s3", "runs/s3") == texts[1]
    assert '"state": "finished"' in texts[0]

    # On a machine without the run, it is copied from the URL, and goes on or is finished.
    shutil.rmtree(here)
    assert main(argv) == 0
    assert "already finished" in capsys.readouterr().err
    assert_equal(only(here))
    shutil.rmtree(here)
    Store(URL).remove(f"{run.name}/result.json")
    assert main(argv) == 0
    assert "resuming from its own checkpoint, at step 3 of 3" in capsys.readouterr().err
    assert_equal(only(here))

    # A machine that cannot read the run trains it anew, and leaves what is at the URL.
    shutil.rmtree(here)
    before = Store(URL).read(f"{run.name}/manifest.json")
    server.check_credentials(True)
    try:
        assert main(argv) == 0
    finally:
        server.check_credentials(False)
    capsys.readouterr()
    assert main(["sync"]) == 2
    assert f"{URL}/{run.name}: an earlier run is there, which could not be read" in capsys.readouterr().err
    assert Store(URL).read(f"{run.name}/manifest.json") == before
    assert main(["sync", "--replace"]) == 0
    assert_equal(only(here))
    assert Store(URL).read(f"{run.name}/manifest.json") != before


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # submitit's logs
def test_a_sweep_is_uploaded_by_the_process_of_each_run(
    server: Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sweep.toml").write_text(SWEEP)
    argv = ["submit", "sweep.toml", "--runs", URL, "--cluster", "debug"]
    assert main(argv) == 0
    assert f"uploaded: {URL}/" in capsys.readouterr().err
    assert_equal(only(here))
    assert not any("/." in f"/{name}" for name in Store(URL).sizes())
