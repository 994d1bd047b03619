"""A calibration from finished runs has what their records have, and a line says what they lack."""

import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from sage.bench.calibrate import from_runs
from sage.cli.main import main
from sage.predict.calibration import Calibration, read
from sage.records.record import read_metrics

REDUCERS = ("exact", "topk", "powersgd", "sage")
WARM_UP, STEPS = 2, 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each reducer, by its name; that of topk has the phases of its steps."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for reducer in REDUCERS:
        profile = ["--profile"] if reducer == "topk" else []
        run = ["digits-ff", "--steps", str(STEPS), "--reducer", reducer, "--runs", str(folder / reducer)]
        assert main(["run", *run, *profile]) == 0
        (found[reducer],) = (folder / reducer).iterdir()
    return found


@pytest.fixture(scope="module")
def calibration(runs: dict[str, Path]) -> Calibration:
    found, lacks = from_runs(list(runs.values()))
    assert lacks.startswith("the runs do not have: when each gradient is ready")
    assert "\n" not in lacks
    return found


def steps_of(run: Path) -> list[dict[str, float]]:
    steps = [record for record in read_metrics(run) if record["kind"] == "step"]
    return steps[WARM_UP:]


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_reducer_has_the_times_and_bytes_of_its_run(
    reducer: str, calibration: Calibration, runs: dict[str, Path]
) -> None:
    (method,) = [each for each in calibration.methods if each.reducer == reducer]
    steps = steps_of(runs[reducer])
    assert method.encode_seconds == tuple(step["encode_seconds"] for step in steps)
    assert method.decode_seconds == {2: tuple(step["decode_seconds"] for step in steps)}
    control = 16  # the loss and the stop flag
    recorded = median(sum(dict(step["bytes"]).values()) - control for step in steps)  # type: ignore[call-overload]
    sent = sum(message.bytes for message in method.messages[2])
    assert abs(sent - recorded) <= len(method.messages[2])  # each is rounded
    assert (method.density is None) == (reducer in ("exact", "powersgd"))


def test_the_computation_is_that_of_the_profiled_run(calibration: Calibration, runs: dict[str, Path]) -> None:
    model, steps = calibration.model, steps_of(runs["topk"])
    assert model.backward_seconds == tuple(step["phases"]["backward"] for step in steps)  # type: ignore[index]
    assert {each.ready_seconds for each in model.parameters} == {median(model.backward_seconds)}
    assert model.numel == 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    assert min(model.optimizer_seconds) > 0
    assert model.gamma == (1.0,)


def test_links_are_the_all_reduces_that_the_runs_measured(
    calibration: Calibration, runs: dict[str, Path]
) -> None:
    for at, run in enumerate(runs.values()):
        links = json.loads((run / "manifest.json").read_text())["links"]
        small, large = calibration.links[2 * at : 2 * at + 2]
        assert (small.scope, small.ranks, small.bytes) == ("intra", 2, 4)
        assert small.seconds == (2 * links["alpha_seconds"],)
        # Two ranks send a vector once each way.
        assert large.seconds[0] == pytest.approx(8 * large.bytes / links["bits_per_second"])


def test_the_command_writes_the_file(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.json"
    folders = [str(runs[name]) for name in ("exact", "topk")]
    assert main(["calibrate", "--from-runs", *folders, "--output", str(output)]) == 0
    result = capsys.readouterr()
    assert [each.reducer for each in read(output).methods] == ["exact", "topk"]
    assert result.err.startswith("sage calibrate: the runs do not have: ")
    assert result.err.count("\n") == 1
    assert "| `topk` |" in result.out


def test_runs_that_give_no_calibration_are_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs["exact"], unfinished)
    (unfinished / "result.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(runs["exact"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "batch_size": 7}))
    simulated = tmp_path / "simulated"
    shutil.copytree(runs["exact"], simulated)
    (simulated / "config.json").write_text(json.dumps({**config, "workers_in_process": True}))
    mounted = tmp_path / "mounted"
    shutil.copytree(runs["exact"], mounted)
    (mounted / "config.json").write_text(json.dumps({**config, "mount": "ddp"}))
    exchanging = tmp_path / "exchanging"
    shutil.copytree(runs["exact"], exchanging)
    settings = {**config, "optimizer": "onebit-adam", "freeze_step": 2}
    (exchanging / "config.json").write_text(json.dumps(settings))
    topk = str(runs["topk"])
    for folders, says in (
        ([str(tmp_path / "nowhere")], "nowhere has no finished run"),
        ([str(unfinished)], "unfinished has no finished run"),
        ([str(runs["exact"])], "run one of them with --profile"),
        ([topk, str(other)], "has batch_size 32, and "),
        ([topk, str(mounted)], "mounted has the mount ddp"),
        ([topk, str(simulated)], "simulated has simulated ranks"),
        ([topk, str(exchanging)], "exchanging has the optimizer onebit-adam, which communicates itself"),
    ):
        assert main(["calibrate", "--from-runs", *folders, "--output", str(tmp_path / "c.json")]) == 2
        message = capsys.readouterr()
        assert message.err.count("\n") == 1
        assert says in message.err
    assert main(["calibrate", "digits-ff", "--from-runs", topk]) == 2
    assert "leave out 'digits-ff'" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
