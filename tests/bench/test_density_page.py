"""Tests that the commands of docs/explanation/density.md run and that its tables have the measured values."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from sage.bench import density, figure, trace
from sage.bench import record as recording
from sage.bench.trace import Trace
from sage.cli.main import main
from sage.cli.run import parse_run
from sage.config import Config
from sage.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "explanation" / "density.md").read_text()


def commands() -> list[str]:
    """The commands of the measurement, each on one line."""
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [line for line in block.replace("\\\n", " ").splitlines() if line]


def small(config: Config, *, steps: int, elements: int, folder: Path | None = None, **_: Any) -> Trace:
    """A trace like that of `record`, without training and small."""
    assert steps > 60
    assert elements >= 2**16
    first = 1 if folder else 0
    generator = torch.Generator().manual_seed(0)
    codes_SWN = torch.randn(60, 2, 200, generator=generator).half()
    lr_S = torch.ones(60, dtype=torch.float64)
    exponents_SW = torch.zeros(60, 2, dtype=torch.int32)
    settings = config.to_dict() | {"workload": f"{config.workload} on {config.world_size}"}
    return Trace(codes_SWN, exponents_SW, lr_S, first=first, numel=200, config=settings)


def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without training and replays, which tests/bench/test_bench.py covers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recording, "record", small)
    monkeypatch.setattr(trace, "record", small)
    replayed = dict.fromkeys((1.0, *density.JUMPS), density.Replay([0.01] * 60, [1] * 60, [1.0] * 60, 1, 1))
    monkeypatch.setattr(density, "replay", lambda *_: replayed)
    monkeypatch.setattr(density, "cost", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(figure, "density_by_step", lambda *_: "")
    for command in commands():
        program, *words = shlex.split(command)
        assert program == "sage"
        given = [
            str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])
        ]
        if given[0] == "run":
            config = parse_run(given[1:])
            config.folder.mkdir(parents=True)
            write_json(config.folder / "config.json", config.to_dict())
        else:
            assert main(given) == 0
    assert len(list(Path().glob("density*/density.csv"))) == 2


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    """After a new measurement, the page must have the values of the files."""
    measured = "".join(path.read_text() for path in sorted(RESULTS.glob("density*/density.md")))
    quoted = re.findall(r"^\| trace \|.*\n(?:\|.*\n)+", PAGE, flags=re.MULTILINE)
    assert len(quoted) > 3
    for table in quoted:
        assert table in measured
