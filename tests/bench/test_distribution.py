"""Tests of `sage bench distribution`: the replayed error feedback, the tables, the page and the errors."""
# S = steps, N = elements

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch

from sage.bench import npy
from sage.bench.distribution.families import FAMILIES
from sage.bench.distribution.main import moments
from sage.bench.distribution.measure import WHOLE, WITH, WITHOUT, rows_of, signals
from sage.bench.distribution.tables import FIELDS
from sage.bench.distribution.words import findings
from sage.bench.repetitions import cases_of
from sage.bench.trace import Trace
from sage.cli.main import main
from sage.cli.run import parse_run
from sage.storage import write_json

DIGITS = ["digits-ff", "--reducer", "exact", "--batch-size", "4"]


def made_up(steps: int = 5, n: int = 4000, name: str = "made-up") -> Trace:
    """Double exponential gradients of two layers, of which the second is twice as large and half zeros."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(steps, 2, n, generator=generator) - 0.5
    x = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    x[:, :, n // 2 :] *= 2
    x[:, :, n // 2 :: 2] = 0
    sizes = [("first.weight", n // 2), ("second.weight", n // 2)]
    lr_S = torch.ones(steps, dtype=torch.float64)
    exponents = torch.full((steps, 2), -10, dtype=torch.int32)
    return Trace(x.half(), exponents, lr_S, 0, n, {"workload": name}, sizes)


def test_the_residual_is_that_of_top_k_with_error_feedback() -> None:
    trace = made_up()
    (case,) = cases_of("topk:density=0.01", [0.1])
    found = {(step, memory): x_N for step, memory, x_N in signals(trace, [0, 2, 4], case)}
    residual_N = torch.zeros(4000)
    for step in range(5):
        gradient_N = trace.gradient(step, 0)
        signal_N = gradient_N + residual_N
        if step in (0, 2, 4):
            assert torch.equal(found.pop((step, WITHOUT)), gradient_N)
            assert torch.equal(found.pop((step, WITH)), signal_N)
        residual_N = signal_N.clone()
        residual_N[signal_N.abs().topk(40).indices] = 0
    assert found == {}


def test_each_layer_is_measured_by_itself() -> None:
    (case,) = cases_of("topk", [0.001])
    rows = list(rows_of(made_up(), "t", [0], case, sample=10**6, seed=0, how="mle"))
    plain = {row.layer: row for row in rows if row.memory == WITHOUT}
    assert list(plain) == [WHOLE, "first.weight", "second.weight"]
    assert [row.elements for row in plain.values()] == [4000, 2000, 2000]
    assert [row.zeros for row in plain.values()] == pytest.approx([0.25, 0, 0.5], abs=0.001)
    first, second = plain["first.weight"], plain["second.weight"]
    assert (first.best, second.best) == ("double exponential", "double exponential")
    scales = [row.fits["double exponential"].fitted.scale for row in (first, second)]
    assert scales == pytest.approx([2.0**-10, 2.0**-9], rel=0.06)


def test_the_moments_are_spread_over_the_trace() -> None:
    assert moments(1000) == [100, 500, 999]
    assert moments(2) == [0, 1]


class Loads(HTMLParser):
    """The addresses that a page refers to, its scripts, and its unclosed elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                self.addresses.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "link", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a trace and of a folder of vectors."""
    folder = tmp_path_factory.mktemp("distribution")
    made_up().save(folder / "trace.pt")
    (folder / "grads").mkdir()
    for step in (10, 20, 30):
        npy.write(folder / "grads", "<lstm>", step, 0, torch.randn(300))
    given = [str(folder / "trace.pt"), str(folder / "grads")]
    out = folder / "out"
    assert main(["bench", "distribution", *given, "--sample", "2500", "--output", str(out)]) == 0
    return out


def test_the_page_is_complete_in_itself(output: Path) -> None:
    text = (output / "distribution.html").read_text()
    page = Loads()
    page.feed(text)
    assert page.open == []
    assert page.scripts == 0
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", text)
    assert len(set(page.ids)) == len(page.ids)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    # Per trace: Q-Q and tail at three steps, and the distances by step.
    assert text.count("<figure>") == 14
    assert "KS distance by layer, step 4" in text
    assert "KS distance by layer, step 30" not in text
    assert "prefers-color-scheme: dark" in text
    for family in FAMILIES:
        assert f"</svg>{family}</li>" in text


def test_the_csv_has_every_fit_with_the_number_of_elements_used(output: Path) -> None:
    lines = (output / "distribution.csv").read_text().splitlines()
    head = [line for line in lines if line.startswith("# ")]
    assert any(line.startswith("# command: sage bench distribution ") for line in head)
    assert "# error feedback: topk:density=0.001" in head
    rows = list(csv.DictReader(lines[len(head) :]))
    assert tuple(rows[0]) == FIELDS
    # Trace: 3 steps, with and without error feedback, whole and two layers; vectors: only whole.
    assert len(rows) == len(FAMILIES) * 2 * 3 * (3 + 1)
    assert {row["family"] for row in rows} == set(FAMILIES)
    whole = [row for row in rows if row["layer"] == WHOLE]
    assert {(row["trace"], row["used"]) for row in whole} == {
        ("made-up", "2500"),
        ("grads, from step 10", "300"),
    }
    assert [row["step"] for row in whole if row["trace"] == "made-up"][:: 2 * len(FAMILIES)] == [
        "0",
        "2",
        "4",
    ]
    for row in rows:
        assert float(row["ks_error"]) == pytest.approx(1.35810 / numpy.sqrt(int(row["used"])), rel=1e-4)
        assert 0 <= float(row["ks"]) <= 1


def test_the_tables_have_the_distances_of_the_csv(output: Path) -> None:
    text = (output / "distribution.md").read_text()
    lines = (output / "distribution.csv").read_text().splitlines()
    rows = list(csv.DictReader([line for line in lines if not line.startswith("# ")]))
    wanted = [r for r in rows if (r["trace"], r["step"], r["memory"]) == ("made-up", "4", WITH)]
    cells = " | ".join(f"{float(r['ks']):.3f}" for r in wanted if r["layer"] == WHOLE)
    assert "| 4 | with | 2,500 | " in text
    assert f" | {cells} | ± 0.027 | " in text
    assert text.count("### KS distance by step") == 2
    assert "\n## Origin\n\n- command: sage bench distribution " in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_findings_say_which_family_is_closest() -> None:
    (case,) = cases_of("topk", [0.001])
    trace = made_up()
    lines = findings(list(rows_of(trace, "t", [0, 4], case, sample=10**6, seed=0, how="mle")))
    assert "are positive" in lines[0]
    (layers,) = (line for line in lines if line.startswith("Closest without error feedback, by layer"))
    assert layers == "Closest without error feedback, by layer and step (4): double exponential 4."
    trace.codes_SWN.zero_()
    nothing = list(rows_of(trace, "t", [0], case, sample=10**6, seed=0, how="mle"))
    assert findings(nothing)[0].startswith("No gradient could be fitted")


def test_sidcos_estimates_differ_from_the_likeliest(tmp_path: Path) -> None:
    made_up().save(tmp_path / "trace.pt")
    found = {}
    for how in ("mle", "sidco"):
        out = tmp_path / how
        given = ["bench", "distribution", str(tmp_path / "trace.pt"), "--at", "1", "--estimator", how]
        assert main([*given, "--output", str(out)]) == 0
        lines = (out / "distribution.csv").read_text().splitlines()
        rows = list(csv.DictReader([line for line in lines if not line.startswith("# ")]))
        assert {row["estimator"] for row in rows} == {how}
        found[how] = {row["family"]: row["scale"] for row in rows if row["layer"] == WHOLE}
    same = {family for family in FAMILIES if found["mle"][family] == found["sidco"][family]}
    assert same == {"normal", "Laplace", "double exponential"}


def test_a_gradient_of_zeros_is_reported_without_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = made_up(2)
    trace.codes_SWN[0].zero_()
    trace.save(tmp_path / "trace.pt")
    out = tmp_path / "out"
    assert main(["bench", "distribution", str(tmp_path / "trace.pt"), "--output", str(out)]) == 0
    assert re.search(r"^ +0 +without +0 +100 % +(– +){6}–$", capsys.readouterr().out, re.MULTILINE)
    assert "100 %" in (out / "distribution.html").read_text()


def test_a_run_folder_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "config.json", parse_run(DIGITS).to_dict())
    assert main(["bench", "distribution", str(tmp_path), "--steps", "3", "--elements", "500"]) == 0
    out = capsys.readouterr().out
    assert "digits-ff:" in out
    assert len(re.findall(r"^ +[012] +with", out, re.MULTILINE)) == 6


def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "trace.pt")
    made_up().save(tmp_path / "trace.pt")
    for given, fault in (
        ([file, "--at", "5"], f"--at 5: {file} has 5 steps; the last is 4"),
        ([file, "--at", "-1"], "--at -1: expected steps of 0 or more"),
        ([file, "--sample", "1"], "--sample 1: expected 2 or more"),
        ([file, "--reducer", "exact"], "--reducer exact: it keeps no residual"),
        ([file, "--reducer", "variance"], "--reducer variance: it needs squared gradients"),
        ([file, "--reducer", "topq"], "topq"),
        ([file, file, file], "is given twice"),
        ([str(tmp_path / "absent.pt")], "there is no file"),
        ([str(tmp_path)], "is a folder with neither a run nor .npy files"),
    ):
        assert main(["bench", "distribution", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert fault in line
    trace = made_up()
    trace.codes_SWN[1, 0, 0] = torch.inf
    trace.save(tmp_path / "trace.pt")
    assert main(["bench", "distribution", file]) == 2
    assert "made-up: the gradient of step 1 has values that are not finite" in capsys.readouterr().err


def test_the_table_of_the_benchmarks_has_the_measured_values() -> None:
    benchmarks = Path(__file__).resolve().parents[2] / "benchmarks"
    _, _, section = (benchmarks / "README.md").read_text().partition("## Distributions of gradients")
    section, _, _ = section.partition("\n### Distributions with three seeds")
    measured = "".join(path.read_text() for path in (benchmarks / "results" / "distribution").glob("*.md"))
    rows = re.findall(r"^\| [^|]+ (\| \d+ \| with.*)$", section, flags=re.MULTILINE)
    assert len(rows) == 24
    for row in rows:
        assert f"\n{row}\n" in measured


def test_the_table_of_three_seeds_has_the_measured_values() -> None:
    benchmarks = Path(__file__).resolve().parents[2] / "benchmarks"
    _, _, section = (benchmarks / "README.md").read_text().partition("### Distributions with three seeds")
    section, _, _ = section.partition("\n## ")
    names = {"MLP": "ff", "GPT": "gpt"}
    found = re.findall(r"^\| (\w+)[^|]* \| (\d+) \| (with\w*) \| (.*) \|$", section, flags=re.MULTILINE)
    assert len(found) == 12
    for model, step, feedback, cells in found:
        *closest, normal = (cell.split(", ") for cell in cells.split(" | "))
        for seed, suffix in enumerate(("", "-seed1", "-seed2")):
            path = benchmarks / "results" / "distribution" / f"{names[model]}{suffix}.md"
            distance, family = closest[seed]
            (row,) = re.findall(rf"^\| {step} \| {feedback} \|.*$", path.read_text(), flags=re.MULTILINE)[:1]
            assert row.endswith(f"| {family} |")
            assert f"| {distance} |" in row
            assert f" % | {normal[seed]} |" in row
