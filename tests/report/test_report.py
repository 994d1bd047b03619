"""Tests that a report shows every run under its paths, with figures computed from the records."""

import csv
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_runs import pretend, read, written

from sage.report.curves import POINTS, _smooth, _thin
from sage.report.groups import grouped
from sage.report.report import main
from sage.report.runs import read_runs
from sage.report.tables import tables
from sage.storage import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two workloads: one with everything it can show, and one with little."""
    runs = tmp_path_factory.mktemp("runs")
    pretend(runs, "exact", profile=True)
    pretend(runs, "topk", density=0.01, seconds=0.03, profile=True)
    pretend(runs, "topk", density=0.1, seconds=0.04)
    pretend(runs, "sage", density=0.01, seed=1)
    pretend(runs, "sage", density=0.01, seed=2, stop=25)
    pretend(runs, "threshold", density=0.01, diverges=True, miss=3.0)
    pretend(runs, "exact", workload="digits-long", steps=1000, steps_per_epoch=100)
    pretend(runs, "topk", workload="digits-long", steps=1000, steps_per_epoch=100, density=0.001)
    main([runs], runs / "report")
    return runs / "report"


def test_ratios_compare_with_the_exact_run_of_the_same_workload_and_size(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", seconds=0.02)
    pretend(tmp_path, "topk", density=0.01, miss=1.0, seconds=0.04)
    pretend(tmp_path, "topk", density=0.01, miss=1.0, seconds=0.04, world_size=2)
    runs, _ = read_runs([tmp_path])
    two, four = grouped(runs)
    assert [row.label for row in four.rows] == ["exact", "topk"]
    exact, topk = (row.values for row in four.rows)
    assert exact["speed_up"] == exact["compression"] == 1
    assert topk["speed_up"] == pytest.approx(0.5)
    # Exact sends 6 MB; top-k 40 kB of values and as much of indices to each of three others.
    assert topk["compression"] == pytest.approx(6_000_000 / (3 * 80_000))
    assert topk["payload_bytes_per_step"] == 80_000
    (alone,) = two.rows
    assert alone.values["speed_up"] is None
    # Without an exact run: 4 MB in float32, of which a ring of two sends and receives each 2(W-1)/W = 1 part.
    assert alone.values["compression"] == pytest.approx(2 * 4_000_000 / (2 * 80_000))


def test_labels_name_the_settings_in_which_runs_differ_and_no_others(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    for density in (0.1, 0.01):
        pretend(tmp_path, "topk", density=density, values="fp32")
    pretend(tmp_path, "sage", density=0.01, controller="ema")
    pretend(tmp_path, "dgc", density=0.01, seed=1)
    pretend(tmp_path, "dgc", density=0.01, seed=2)
    runs, _ = read_runs([tmp_path])
    (group,) = grouped(runs)
    assert [row.label for row in group.rows] == [
        "exact", "dgc seed=1", "dgc seed=2", "sage", "topk density=0.01", "topk density=0.1"
    ]  # fmt: skip
    assert {row.series for row in group.rows if row.values["reducer"] == "dgc"} == {"dgc"}


def test_a_run_that_exists_in_two_folders_has_a_row_for_each(tmp_path: Path) -> None:
    pretend(tmp_path / "a", "topk", density=0.1)
    pretend(tmp_path / "b", "topk", density=0.1)
    assert set(read(tmp_path)) == {f"topk in {tmp_path / place}" for place in "ab"}
    assert set(read(tmp_path / "a", tmp_path / "a", tmp_path)) == set(read(tmp_path)), "a run counts once"


def test_an_unfinished_run_has_the_same_figures_as_a_finished_one(tmp_path: Path) -> None:
    pretend(tmp_path / "whole", "topk", density=0.1, steps=40)
    pretend(tmp_path / "part", "topk", density=0.1, steps=40, stop=20)
    (whole,), (part,) = read(tmp_path / "whole").values(), read(tmp_path / "part").values()
    assert part["status"] == "unfinished at step 20, stopped"
    assert whole["status"] == "finished"
    for name in (
        "steps_per_second",
        "payload_bytes_per_step",
        "wire_bytes_per_step",
        "density_asked",
        "metric",
    ):
        assert part[name] == pytest.approx(whole[name]), name
    assert part["seconds"] == pytest.approx(whole["seconds"] / 2)
    assert part["best"] == part["final"] < whole["final"]


def test_a_run_that_has_just_started_or_has_diverged_has_a_row(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", stop=0)
    pretend(tmp_path, "topk", density=0.1, diverges=True)
    runs, _ = read_runs([tmp_path])
    (group,) = grouped(runs)
    shown = {table.title: table.lines for table in tables(group)}
    (diverged,), (begun,) = shown["Outcome"], shown["Not finished"]
    assert diverged == ["topk", "not finite", "not finite", "not finite", "1", "finished"]
    assert begun[:2] == ["exact", "unfinished at step 0, stopped"]
    assert begun[2].startswith("stopped at step 0 on 20")


def test_on_target_steps_are_those_within_a_fifth_of_the_target_density(tmp_path: Path) -> None:
    pretend(tmp_path, "topk", density=0.01, miss=1.1)
    pretend(tmp_path, "sage", density=0.01, miss=1.3)
    figures = read(tmp_path)
    assert figures["topk"]["density_met"] == 1
    assert figures["sage"]["density_met"] == 0


def test_the_error_for_no_runs_describes_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no runs under .*runs/<workload>-<reducer>-<hash>.*metrics\.jsonl"):
        main([tmp_path], tmp_path / "report")
    with pytest.raises(ValueError, match="absent is not a folder"):
        main([tmp_path / "absent"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_damaged_run_is_left_out_by_name_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, "exact")
    damaged = pretend(tmp_path, "topk", density=0.1)
    (damaged / "metrics.jsonl").write_bytes(b"{\n{}\n")
    lacking = pretend(tmp_path, "sage", density=0.1)
    (lacking / "config.json").unlink()
    assert main([tmp_path], tmp_path / "report") == 0
    for shown in (capsys.readouterr().out, *written(tmp_path / "report", "md", "html")):
        assert "exact" in shown
        assert f"{damaged.name}" in shown
        assert "line 1 is damaged" in shown
        assert f"{lacking.name}" in shown
        assert "config.json is missing" in shown


def test_the_csv_has_plain_numbers(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.01, miss=1.0)
    main([tmp_path], tmp_path / "report")
    with (tmp_path / "report" / "report.csv").open(newline="") as file:
        exact, topk = csv.DictReader(file)
    assert float(topk["payload_indices_bytes_per_step"]) == 40_000
    assert exact["payload_indices_bytes_per_step"] == ""
    assert float(topk["density_asked"]) == 0.01


def test_markdown_tables_are_rectangular_whatever_a_label_contains(tmp_path: Path) -> None:
    pretend(tmp_path, "topk", density=0.1, rule="a|b")
    pretend(tmp_path, "topk", density=0.1, rule="[c]")
    main([tmp_path], tmp_path / "report")
    (text,) = written(tmp_path / "report", "md")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "rule=a\\|b" in text


class Elements(HTMLParser):
    """The elements of a page, and a check that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= given.items() for name, given in self.seen)


def test_the_page_is_self_contained_and_its_ids_are_unique(full_report: Path) -> None:
    (text,) = written(full_report, "html")
    page = Elements()
    page.feed(text)
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(ids)
    assert not page.count("script")
    outside = [
        value for _, attributes in page.seen for name, value in attributes.items() if name in ("src", "href")
    ]
    # Links lead to places within the page.
    assert all(value == "data:," or value.startswith("#") for value in map(str, outside))
    assert "@import" not in text
    # Two groups: the second has only two reducers, which were not profiled.
    assert page.count("figure") == page.count("svg", role="img") == page.count("figcaption") == 8 + 7
    # Four tables of settings, the runs that are not finished, and the single runs.
    assert page.count("th", scope="row") == 4 * 5 + 1 + 6 + 4 * 2 + 2
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert not re.search(r"#0[123]0[123]0[123]\b", text), "a placeholder colour was left in"


def test_the_table_of_contents_links_every_heading_once_in_the_order_of_the_page(full_report: Path) -> None:
    (text,) = written(full_report, "html")
    (contents,) = re.findall(r"<nav .*?</nav>", text, flags=re.DOTALL)
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', contents)
    rest = text[text.index(contents) + len(contents) :]
    found = re.findall(r'<(?:h2|h3|strong|summary) id="([^"]+)">([^<]+)<', rest)
    # A group's single runs stand below its figures, and are listed with its tables.
    assert len(links) == len(found)
    assert {name for name, _ in links} == {name for name, _ in found}
    headings = [name for name, _ in found if not name.endswith("-single-runs")]
    assert [name for name, _ in links if not name.endswith("-single-runs")] == headings
    titles = dict(found)
    assert all(titles[name] == title for name, title in links if not name.endswith("-single-runs"))


def test_text_from_a_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    pretend(tmp_path, "topk", density=0.1, rule=evil, workload="<b>bold</b>")
    pretend(tmp_path, "topk", density=0.1, rule="$x_1$ & \"'")
    folder = pretend(tmp_path, "topk", density=0.1, rule="_hidden")
    output = json.loads((folder / "manifest.json").read_text())
    output["machine"]["cpu"] = evil
    write_json(folder / "manifest.json", output)
    pretend(tmp_path, "sage", workload=evil.replace("/", "\u2215"), density=0.1)
    main([tmp_path], tmp_path / "report")
    (text,) = written(tmp_path / "report", "html")
    page = Elements()
    page.feed(text)
    assert not page.count("script")
    assert not page.count("b")
    assert "rule=$x_1$ &amp; &quot;&#x27;" in text


def in_browser(page: Path, folder: Path) -> Elements:
    """The elements of a page that Chromium shows, without a message on its console."""
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    quiet += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0"]
    place = [f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *quiet, *place, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    dom = Elements()
    dom.feed(done.stdout)
    return dom


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_page_without_an_error(full_report: Path, tmp_path: Path) -> None:
    dom = in_browser(full_report / "report.html", tmp_path)
    assert dom.count("tr") == 4 * (1 + 5) + (1 + 1) + (1 + 6) + 4 * (1 + 2) + (1 + 2)
    assert dom.count("svg", role="img") == 8 + 7


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_page_of_eighty_runs_of_which_some_failed(tmp_path: Path) -> None:
    for i in range(80):
        density = 10.0 ** -(1 + i // 2 % 5)
        reducer = ("topk", "sage")[i % 2]
        stop = i % 3 if i % 10 == 9 else None
        folder = pretend(
            tmp_path, reducer, seed=i // 10, stop=stop, density=density, steps=4, steps_per_epoch=2
        )
        if stop is not None:
            write_json(folder / "failure.json", {"error": "rank 1: out of memory"})
    main([tmp_path], tmp_path / "report")
    dom = in_browser(tmp_path / "report" / "report.html", tmp_path)
    # Ten settings, one of which failed with every seed, with a step or without any.
    without = sum(i % 10 == 9 and i % 3 == 0 for i in range(80))
    assert dom.count("tr") == 4 * (1 + 10) + (1 + 8) + (1 + 80 - without)
    assert dom.count("figure") >= 5


def test_a_long_curve_is_thinned_but_keeps_its_ends_and_peaks() -> None:
    import numpy

    x_S = numpy.arange(10_000.0)
    y_S = numpy.sin(x_S / 300)
    y_S[[1234, 8765]] = 50, -50
    y_S[3000:3500] = math.nan
    x_thin, y_thin = _thin(x_S, y_S)
    assert len(x_thin) <= POINTS + 2
    assert {0, 1234, 8765, 9999} <= set(x_thin.tolist())
    assert (numpy.diff(x_thin) > 0).all()
    numpy.testing.assert_array_equal(y_thin, y_S[x_thin.astype(int)])
    assert numpy.isnan(y_thin).any(), "the gap stays"


def test_smoothing_averages_the_finite_values_of_its_window() -> None:
    import numpy

    smooth = _smooth(numpy.array([1.0, 3.0, math.nan, 5.0, math.inf, math.nan, math.nan, 2.0]), 2)
    numpy.testing.assert_array_equal(smooth, [1, 2, 3, 5, 5, math.nan, math.nan, 2])
