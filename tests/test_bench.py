"""Recorded gradients and their replay: what is kept, and that a replay is the reducer itself."""
# S = steps, W = ranks, N = elements

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sage import registry
from sage.bench import density, trace
from sage.bench.trace import Trace
from sage.cli import main
from sage.mount import WholeModel


def made_up(steps: int = 62, world_size: int = 2, n: int = 3000) -> Trace:
    """Heavy-tailed gradients, the same statistics at every step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, world_size, n, generator=generator).exp()
    x *= torch.randn(steps, world_size, n, generator=generator)
    exponents_SW = torch.full((steps, world_size), -20, dtype=torch.int32)
    return Trace(x.half(), exponents_SW, n, {"workload": "made-up"})


# Recording.


def test_what_is_recorded_is_what_the_reducer_is_handed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed = []
    forward = WholeModel.forward

    def spy(mount: WholeModel, wire: Any) -> Any:
        handed.append((wire.rank, mount.grad_C.clone()))
        return forward(mount, wire)

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
def test_codes_hold_gradients_of_any_scale_to_eleven_bits(scale: float) -> None:
    gradient_N = scale * made_up(1, 1).codes_SWN[0, 0].float()
    codes_N, exponent = trace.encode(gradient_N)
    assert 2**14 <= float(codes_N.abs().max()) <= 2**15
    torch.testing.assert_close(codes_N.double() * 2.0**exponent, gradient_N.double(), rtol=2**-11, atol=0)


def test_silence_and_an_empty_gradient_can_be_recorded() -> None:
    for gradient_N in (torch.zeros(3), torch.empty(0)):
        codes_N, exponent = trace.encode(gradient_N)
        assert (codes_N.tolist(), exponent) == (gradient_N.tolist(), 0)


def test_a_sample_is_the_same_for_all_and_in_order() -> None:
    at_N = trace.sample(10_000, 100)
    assert at_N.tolist() == sorted(set(at_N.tolist())) == trace.sample(10_000, 100).tolist()
    assert at_N.numel() == 100
    assert trace.sample(7, 100).tolist() == list(range(7))


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(1)}, other)
    text = tmp_path / "text.pt"
    text.write_text(json.dumps({}))
    for path in (other, text):
        with pytest.raises(ValueError, match="is no trace"):
            trace.load(path)
    with pytest.raises(ValueError, match="there is no file"):
        trace.load(tmp_path / "absent.pt")


def test_a_saved_trace_comes_back(tmp_path: Path) -> None:
    before = made_up(3)
    before.save(tmp_path / "a" / "trace.pt")
    after = trace.load(tmp_path / "a" / "trace.pt")
    assert torch.equal(after.codes_SWN, before.codes_SWN)
    assert torch.equal(after.exponents_SW, before.exponents_SW)
    assert (after.numel, after.name, len(after), after.world_size) == (3000, "made-up", 3, 2)


# Replaying.


def test_the_quantile_holds_any_density_and_the_table_says_so() -> None:
    held = density.hold(made_up(), 0.01, "quantile", "uneven")
    assert held.curve == pytest.approx([1.0] * 62)
    assert (held.mean, held.within, held.padding) == pytest.approx((1.0, 1.0, 1.0))
    assert (held.settles_up, held.settles_down) == (0, 0)
    # 30 elements of 8 bytes, and 8 for their number.
    assert held.sent == pytest.approx(248 / 240)
    cells = density.line(held)
    assert cells[:9] == ["made-up, W = 2", "0.01", "quantile", "1.000", "100%", "0", "0", "1.00", "1.033"]


def test_a_rule_that_never_comes_back_is_said_to_never_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(density.RULES, "stuck", {"controller": "sage", "threshold": 1e30})
    held = density.hold(made_up(), 0.01, "stuck", "padded")
    assert (held.mean, held.within, held.settles_up, held.settles_down) == (0.0, 0.0, None, None)
    assert "never" in density.line(held)


def test_settling_is_counted_from_the_jump_to_the_first_of_five_good_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seen(*_: Any) -> density.Replay:
        late = [3.0, 1.0, 1.1, 2.0, 1.2, 1.0, 0.9, 0.81, 1.0, 1.0]
        return density.Replay([0.01 * had for had in [1.0] * density.WARM + late], [], [], 0, 0)

    monkeypatch.setattr(density, "replay", seen)
    assert density._settles(made_up(1), {"density": 0.01}, 10.0) == 4


def test_the_verb_writes_a_table_a_csv_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up().save(tmp_path / "trace.pt")
    asked = ["--densities", "0.01", "--rules", "sage", "quantile", "--output", str(tmp_path / "out")]
    assert main(["bench", "density", str(tmp_path / "trace.pt"), *asked]) == 0
    heading, rule, *rows = (tmp_path / "out" / "density.md").read_text().splitlines()
    assert heading.count("|") == rule.count("|") == rows[0].count("|") == 12
    assert [re.split(r" *\| *", row)[3] for row in rows] == ["sage", "quantile"]
    with (tmp_path / "out" / "density.csv").open() as file:
        assert [row["rule"] for row in csv.DictReader(file)] == ["sage", "quantile"]
    figure = (tmp_path / "out" / "density.svg").read_text()
    assert "target 0.01" in figure
    assert "quantile" in figure
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_trace_too_short_to_judge_by_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(20).save(tmp_path / "trace.pt")
    assert main(["bench", "density", str(tmp_path / "trace.pt")]) == 2
    assert "has 20 steps: 50 are for settling" in capsys.readouterr().err


def test_bench_without_a_name_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "bench record, bench density, bench compress" in capsys.readouterr().err


def test_every_rule_is_an_option_of_sage() -> None:
    options = registry.options(registry.load("reducers", "sage"))
    for rule in density.RULES.values():
        assert rule.keys() <= options.keys()
