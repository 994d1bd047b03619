"""Tests of traces and their replay: the content of a trace, and that a replay uses the real reducer."""
# S = steps, W = ranks, N = elements

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sage import registry
from sage.bench import density, rules, table, trace
from sage.bench.trace import Trace
from sage.cli.main import main
from sage.cli.run import parse_run
from sage.config import Config
from sage.mount import WholeModel
from sage.storage import write_json
from sage.train import run


def made_up(steps: int = 62, world_size: int = 2, n: int = 3000, drop: int | None = None) -> Trace:
    """Heavy-tailed gradients with equal statistics at every step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, world_size, n, generator=generator).exp()
    x *= torch.randn(steps, world_size, n, generator=generator)
    exponents_SW = torch.full((steps, world_size), -20, dtype=torch.int32)
    config = {"workload": "made-up", "schedule": "constant" if drop is None else "step"}
    lr_S = torch.full((steps,), 0.1, dtype=torch.float64)
    if drop is not None:
        lr_S[drop:] /= 10
    return Trace(x.half(), exponents_SW, lr_S, first=0, numel=n, config=config)


# Recording.


def test_the_recorded_gradients_are_the_inputs_of_the_reducer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed = []
    forward = WholeModel.forward

    def spy(mount: WholeModel, wire: Any, lr: float | None = None) -> Any:
        handed.append((wire.rank, mount.grad_C.clone()))
        return forward(mount, wire, lr)

    monkeypatch.setattr(WholeModel, "forward", spy)
    file = tmp_path / "digits.pt"
    asked = ["--reducer", "topk", "--steps", "2", "--world-size", "2", "--batch-size", "4"]
    assert main(["bench", "record", "digits-ff", *asked, "--out", str(file), "--elements", "500"]) == 0
    assert "digits-ff under topk, 2 x 2 x 500 (steps, ranks, elements of" in capsys.readouterr().out
    recorded = trace.load(file)
    assert recorded.config["reducer"] == "topk"
    assert recorded.numel == handed[0][1].numel()
    at_N = trace.sample(recorded.numel, 500)
    for number, (rank, grad_N) in enumerate(handed):
        seen_N = recorded.gradient(number // 2, rank)
        torch.testing.assert_close(
            seen_N, grad_N[at_N], rtol=2**-11, atol=2.0**-38 * float(grad_N.abs().max())
        )


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
def test_codes_have_eleven_bits_of_gradients_of_any_scale(scale: float) -> None:
    gradient_N = scale * made_up(1, 1).codes_SWN[0, 0].float()
    codes_N, exponent = trace.encode(gradient_N)
    assert 2**14 <= float(codes_N.abs().max()) <= 2**15
    torch.testing.assert_close(codes_N.double() * 2.0**exponent, gradient_N.double(), rtol=2**-11, atol=0)


def test_a_zero_and_an_empty_gradient_can_be_recorded() -> None:
    for gradient_N in (torch.zeros(3), torch.empty(0)):
        codes_N, exponent = trace.encode(gradient_N)
        assert (codes_N.tolist(), exponent) == (gradient_N.tolist(), 0)


def test_a_sample_is_the_same_for_all_ranks_and_in_order() -> None:
    at_N = trace.sample(10_000, 100)
    assert at_N.tolist() == sorted(set(at_N.tolist())) == trace.sample(10_000, 100).tolist()
    assert at_N.numel() == 100
    assert trace.sample(7, 100).tolist() == list(range(7))


DIGITS = ["digits-ff", "--reducer", "topk", "--batch-size", "4"]
"""A run with momentum, shuffled batches and a residual, all of which must be resumed."""


@pytest.mark.parametrize("stop", [0, 4])
def test_a_resumed_run_gives_the_trace_of_an_uninterrupted_one_each_time(tmp_path: Path, stop: int) -> None:
    schedule = ["--schedule", "step", "--milestones", "0.02", "--world-size", "2"]
    folder = tmp_path / "run"
    if stop:
        asked = ["--steps", str(stop), "--workers-in-process", "--runs", str(tmp_path / "runs")]
        run_aside(parse_run([*DIGITS, *schedule, *asked]))
        (folder,) = (tmp_path / "runs").iterdir()
    else:  # no checkpoint: from the seed
        folder.mkdir()
        write_json(folder / "config.json", parse_run([*DIGITS, *schedule]).to_dict())
    before = contents(folder)
    again = [recorded([str(folder)], 4, tmp_path / name) for name in "ab"]
    whole = recorded([*DIGITS, *schedule], stop + 4, tmp_path / "whole")
    assert contents(folder) == before
    for each in again:
        assert (each.first, whole.first) == (stop, 0)
        for part in ("codes_SWN", "exponents_SW", "lr_S"):
            assert torch.equal(getattr(each, part), getattr(whole, part)[stop:])


def recorded(source: list[str], steps: int, out: Path) -> Trace:
    size = ["--steps", str(steps), "--elements", "1000", "--out", str(out)]
    assert main(["bench", "record", *source, *size]) == 0
    return trace.load(out)


def run_aside(config: Config) -> None:
    """Run in another thread, because in the main thread it would replace the tests' signal handlers."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run.main, config).result() == 0


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_trace_has_the_step_at_which_the_learning_rate_dropped(tmp_path: Path) -> None:
    whole = recorded([*DIGITS, "--schedule", "step", "--milestones", "0.02"], 6, tmp_path / "trace")
    first, last = whole.lr_S[0], whole.lr_S[-1]
    assert float(last) == pytest.approx(0.1 * float(first))
    assert whole.drop == int((whole.lr_S == first).sum())
    assert made_up(3).drop is None


def test_the_end_of_a_cosine_is_not_a_drop_of_the_learning_rate(tmp_path: Path) -> None:
    whole = recorded([*DIGITS, "--schedule", "cosine"], 3, tmp_path / "trace")
    assert float(whole.lr_S[2]) < 0.5 * float(whole.lr_S[1])
    assert whole.drop is None


def test_a_run_that_cannot_be_recorded_is_an_error_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "config.json", parse_run(DIGITS).to_dict())
    for asked, result in (
        ([*DIGITS, "--epochs", "0.1", "--steps", "99999"], "so 99999 steps cannot be recorded"),
        ([*DIGITS, "--elements", "0"], "--elements 0: expected 1 or more"),
        ([str(tmp_path), "--lr", "1"], "is a run and has its configuration: leave out --lr 1"),
    ):
        assert main(["bench", "record", *asked, "--out", str(tmp_path / "trace")]) == 2
        assert result in capsys.readouterr().err


def test_a_file_that_is_not_a_trace_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(1)}, other)
    text = tmp_path / "text.pt"
    text.write_text(json.dumps({}))
    for path in (other, text):
        with pytest.raises(ValueError, match="no trace|not a trace"):
            trace.load(path)
    with pytest.raises(ValueError, match="there is no file"):
        trace.load(tmp_path / "absent.pt")


def test_a_saved_trace_loads_unchanged(tmp_path: Path) -> None:
    before = made_up(3)
    before.save(tmp_path / "a" / "trace.pt")
    after = trace.load(tmp_path / "a" / "trace.pt")
    assert torch.equal(after.codes_SWN, before.codes_SWN)
    assert torch.equal(after.exponents_SW, before.exponents_SW)
    assert (after.numel, after.name, len(after), after.world_size) == (3000, "made-up", 3, 2)


# Replaying.


def test_the_quantile_reaches_any_density_and_the_table_shows_it() -> None:
    held = density.measure_controller(made_up(), 0.01, "quantile", "uneven")
    assert held.curve == pytest.approx([1.0] * 62)
    assert (held.mean, held.within, held.padding) == pytest.approx((1.0, 1.0, 1.0))
    assert (held.settles_up, held.settles_down) == (0, 0)
    # 30 elements of 8 bytes, and 8 for their number.
    assert held.sent == pytest.approx(248 / 240)
    cells = table.line(held).split(" | ")
    assert cells[:9] == ["made-up, W = 2", "0.01", "quantile", "100%", "1.000", "0", "0", "–", "1.00"]


def test_a_controller_that_never_returns_to_the_target_never_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "stuck", {"controller": "sage", "threshold": 1e30})
    held = density.measure_controller(made_up(), 0.01, "stuck", "padded")
    assert (held.mean, held.within, held.settles_up, held.settles_down) == (0.0, 0.0, None, None)
    assert table.line(held).count("never") == 2


def test_settling_is_counted_from_the_jump_to_the_first_of_five_steps_on_target() -> None:
    assert density.settled([3.0, 1.0, 1.1, 2.0, 1.2, 1.0, 0.9, 0.81, 1.0, 1.0]) == 4
    assert density.settled([1.0] * 5) == 0
    assert density.settled([1.0] * 4) is None


def test_each_settling_is_counted_in_its_own_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(*_: Any) -> dict[float, density.Replay]:
        bad = {density.UP: [3.0] * 4 + [1.0] * 8, density.DOWN: [0.1] * 12}
        late = {1.0: [1.0] * 5 + [3.0, 1.3, 1.1, 1.0, 0.9, 1.0, 1.0]} | bad
        return {
            factor: density.Replay([0.01 * each for each in [1.0] * 50 + had], [1] * 62, [1.0] * 62, 1, 1)
            for factor, had in late.items()
        }

    monkeypatch.setattr(density, "replay", seen)
    dropped = density.measure_controller(made_up(drop=55), 0.01, "quantile", "uneven")
    assert (dropped.drop, dropped.settles_drop) == (55, 2)
    assert (dropped.settles_up, dropped.settles_down) == (4, None)
    assert density.measure_controller(made_up(), 0.01, "quantile", "uneven").settles_drop is None


def test_a_replayed_jump_equals_recorded_gradients_of_that_scale(tmp_path: Path) -> None:
    plain = made_up()
    jumped = made_up()
    jumped.exponents_SW[density.WARM :] += 3
    options = {"density": 0.01, "controller": "feedback", "exchange": "padded"}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(density, "JUMPS", (8.0,))
        assert density.replay(plain, options)[8.0] == density.replay(jumped, options)[1.0]
        assert density.replay(plain, options)[8.0].density != density.replay(plain, options)[1.0].density


def test_the_command_writes_tables_a_csv_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up().save(tmp_path / "2.pt")
    made_up(world_size=3, drop=55).save(tmp_path / "3.pt")
    asked = ["--densities", "0.1", "0.01", "--rules", "sage", "quantile", "--drawn", "quantile"]
    files = [str(tmp_path / name) for name in ("2.pt", "3.pt")]
    assert main(["bench", "density", *files, *asked, "--output", str(tmp_path / "out")]) == 0
    sections = (tmp_path / "out" / "density.md").read_text().split("## ")[1:]
    assert [section.partition(", at densities of 0.1 / 0.01\n")[0] for section in sections] == [
        *table.MEASURES
    ]
    for section in sections:
        heading, rule, *rows = section.strip().splitlines()[2:]
        assert heading == "| trace | sage | quantile |"
        assert [row.split(" | ")[0] for row in rows] == ["| made-up, W = 2", "| made-up, W = 3"]
        assert rule.count("|") == rows[0].count("|") == rows[1].count("|") == 4
    assert "| made-up, W = 2 | – / – | – / – |\n" in sections[4]
    assert "| 0 / 0 |" in sections[4]
    with (tmp_path / "out" / "density.csv").open() as file:
        assert [row["rule"] for row in csv.DictReader(file)] == ["sage", "quantile"] * 4
    figure = (tmp_path / "out" / "density.svg").read_text()
    assert "target 0.01" in figure
    assert ">quantile<" in figure
    assert ">sage<" not in figure
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_a_run_folder_can_be_given_instead_of_a_trace(tmp_path: Path) -> None:
    constant = [*DIGITS, "--schedule", "constant"]
    write_json(tmp_path / "config.json", parse_run(constant).to_dict())
    size = ["--steps", "60", "--elements", "500"]
    asked = ["--densities", "0.1", "--rules", "quantile", "--output"]
    assert main(["bench", "density", str(tmp_path), *size, *asked, str(tmp_path / "now")]) == 0
    assert main(["bench", "record", *constant, *size, "--out", str(tmp_path / "trace")]) == 0
    assert main(["bench", "density", str(tmp_path / "trace"), *asked, str(tmp_path / "kept")]) == 0
    assert (tmp_path / "now" / "density.svg").read_text() == (tmp_path / "kept" / "density.svg").read_text()


def test_a_trace_that_is_too_short_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(20).save(tmp_path / "trace.pt")
    assert main(["bench", "density", str(tmp_path / "trace.pt")]) == 2
    assert "has 20 steps: 60 or more are needed" in capsys.readouterr().err


def test_duplicate_traces_and_controllers_that_cannot_be_drawn_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "trace.pt")
    made_up(n=10).save(tmp_path / "trace.pt")
    asked = ["--densities", "0.5", "--rules", "quantile"]
    assert main(["bench", "density", file, *asked, "--drawn", "sage", "quantile"]) == 2
    assert "--drawn sage: allowed are the controllers in --rules" in capsys.readouterr().err
    assert main(["bench", "density", file, file, *asked]) == 2
    assert "has the same workload, ranks and first step as another" in capsys.readouterr().err


def test_bench_without_a_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "one of record, density, compress" in capsys.readouterr().err


def test_every_rule_is_an_option_of_sage() -> None:
    options = registry.options(registry.load("reducers", "sage"))
    for rule in rules.RULES.values():
        assert rule.keys() <= options.keys()
