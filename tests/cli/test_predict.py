"""`sage predict`: what it prints and writes, what it imports, and how it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_calibration import BANDWIDTH, SIZES, TIMES, calibration

from sage.cli.main import main
from sage.predict.calibration import write

PLAN = """
[[cluster]]
name = "planned"
nodes = [2, 1250]
gpus_per_node = 8
bits_per_second = [1e9, 1e11]
intra_bits_per_second = 2.4e12
"""


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """The file of a calibration, beside a plan."""
    write(tmp_path / "calibration.json", calibration(noise=0.02))
    (tmp_path / "cluster.toml").write_text(PLAN)
    return str(tmp_path / "calibration.json")


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["predict", *argv]) == 0
    message = capsys.readouterr()
    assert message.err == ""
    return message.out


def test_it_prints_how_many_set_ups_pay_and_the_tables(
    capsys: pytest.CaptureFixture[str], measured: str
) -> None:
    out = printed(capsys, measured, "--world-size", "4", "64", "--bandwidth", "1e8", "1e11")
    lines = out.splitlines()
    assert lines[2] == (
        "2 of 8 set-ups pay: their predicted step is shorter than overlapped bf16's, "
        "and than every dense method's."
    )
    for row in ("| 4 ", "| 64 (model) "):
        assert sum(line.startswith(row) for line in lines) == 2
    assert "nothing pays" in out
    assert out.count("| topk(density=0.01) × ddp ") == 8  # in the summary, and in a table of each set-up
    assert "- model: above 16 ranks, four times the largest measured world size." in lines
    table = [line for line in lines if line.startswith("|")]
    assert all(line.endswith(" |") for line in table)


def test_a_reducer_that_misses_the_target_pays_nowhere(
    capsys: pytest.CaptureFixture[str], measured: str
) -> None:
    out = printed(capsys, measured, "--bandwidth", "1e7", "--steps-ratio", "topk=inf")
    assert "\n0 of 6 set-ups pay" in out
    assert "with these ratios of steps: topk inf." in out


def test_control_characters_of_a_name_are_printed_as_escapes(
    capsys: pytest.CaptureFixture[str], measured: str
) -> None:
    content = json.loads(Path(measured).read_text())
    (method,) = [method for method in content["methods"] if method["reducer"] == "topk"]
    method["reducer"] = content["model"]["workload"] = "red\x1b[31m"
    Path(measured).with_name("other.json").write_text(json.dumps(content))
    out = printed(capsys, str(Path(measured).with_name("other.json")))
    assert "\x1b" not in out
    assert "Predicted steps of red\\x1b[31m: " in out


def test_json_has_a_row_for_each_method_mount_world_size_and_bandwidth(
    capsys: pytest.CaptureFixture[str], measured: str
) -> None:
    output = json.loads(printed(capsys, measured, "--world-size", "4", "8", "--bandwidth", "1e8", "--json"))
    assert (output["workload"], output["reference"]) == ("made-up", "bf16 × ddp")
    assert len(output["rows"]) == 2 * 6
    assert {row["bits_per_second"] for row in output["rows"]} == {1e8}
    assert {link["collective"] for link in output["links"]} == set(TIMES)
    for link in output["links"]:
        assert link["bits_per_second"] == pytest.approx(8 * BANDWIDTH, rel=0.05)
        assert [int(size) for size in link["residuals"]] == list(SIZES)
    (four, eight) = output["limits"]
    assert (four["ranks"], eight["ranks"]) == (4, 8)
    ((low, closed),), ((_, root),) = four["closed_form"], four["by_roots"]
    assert low == 0
    assert root == pytest.approx(closed, rel=1e-5)


def test_output_has_the_tables_of_every_set_up_and_both_pictures(
    capsys: pytest.CaptureFixture[str], measured: str, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "here"
    bits = ["1e7", "1e8", "1e9", "1e10", "1e11"]
    out = printed(capsys, measured, "--bandwidth", *bits, "--output", str(folder))
    assert {path.name for path in folder.iterdir()} == {
        "prediction.md", "prediction.json", "step-time.svg", "map.svg",
    }  # fmt: skip
    text = (folder / "prediction.md").read_text()
    assert text.count("\n## ") == 15 + 3
    assert "\n## 4 ranks, 100 Mbit/s\n" in text
    assert "\n## 4 ranks, 100 Mbit/s\n" not in out  # there are too many to print
    assert len(json.loads((folder / "prediction.json").read_text())["rows"]) == 15 * 6
    assert "nothing pays" in (folder / "map.svg").read_text()
    assert "bf16 × ddp" in (folder / "step-time.svg").read_text()


def test_a_plan_of_ten_thousand_ranks_is_predicted_without_torch(measured: str, tmp_path: Path) -> None:
    code = (
        "import sys; from sage.cli.main import main; status = main(sys.argv[1:]); "
        "print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    argv = ["predict", measured, "--plan", str(tmp_path / "cluster.toml")]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.split() == ["False", "False"]
    assert "| planned | 10000 (model) |" in done.stdout
    assert "latency from NCCL's table, not measured" in done.stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere.json"], "there is no file nowhere.json; give the JSON file of a calibration"),
        (["cluster.toml"], "is damaged, not valid JSON"),
        (["calibration.json", "--plan", "nowhere.toml"], "there is no file nowhere.toml; --plan needs"),
        (["calibration.json", "--plan", "cluster.toml", "--latency", "1e-5"], "leave out --world-size,"),
        (
            ["calibration.json", "--bandwidth", "-1"],
            "--bandwidth is (-1.0,); allowed is a list, each a number",
        ),
        (["calibration.json", "--world-size", "20000"], "in [1, 10000]"),
        (["calibration.json", "--world-size", "x"], "--world-size is 'x'; allowed is a whole number"),
        (["calibration.json", "--bucket-mb", "0"], "--bucket-mb is 0; allowed is a number of MiB above 0"),
        (
            ["calibration.json", "--steps-ratio", "topk=0"],
            "--steps-ratio is 'topk=0'; allowed is REDUCER=RATIO",
        ),
        (
            ["calibration.json", "--steps-ratio", "topk=1e308"],
            "--steps-ratio is 'topk=1e308'; allowed is REDUCER=RATIO with a number from 0.001 to 1000",
        ),
        (["calibration.json", "--steps-ratio", "topk=1", "topk=2"], "--steps-ratio has topk twice"),
        (["calibration.json", "--steps-ratio", "bf16=0.5"], "bf16 is the reference, whose ratio is 1"),
        (["calibration.json", "--steps-ratio", "topk"], "--steps-ratio is 'topk'; allowed is REDUCER=RATIO"),
        (["calibration.json", "--steps-ratio", "tokp=1"], "no reducer of the calibration is called 'tokp'"),
        ([], "missing argument 'CALIBRATION'"),
    ],
)
def test_wrong_input_is_refused_in_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    measured: str,
    argv: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", *argv]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert len(output.err.splitlines()) == 1
