"""Tests that a report's figures are readable and its files complete, whatever one run contains."""

import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from fuzz import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_runs import change, pretend, read, the_group, written
from matplotlib.figure import Figure

from sage.output.units import duration, number, percent, size
from sage.report.axes import DistinctLabels, limit, scale
from sage.report.bands import band
from sage.report.curves import Canvas, Drawing
from sage.report.groups import grouped
from sage.report.plots import FIGURES, MAX_GROUPS, Plot, assign_line_styles, chosen, plots
from sage.report.report import main
from sage.report.runs import read_runs
from sage.report.svg import NUM_LINE_STYLES, line_styles


def drawn(runs: Path, *only: str) -> dict[str, Plot]:
    """The figures of the one group of the runs, by title; all, or those whose drawing functions are named."""
    chosen_ones = {title: draw for title, draw in FIGURES.items() if not only or draw.__name__ in only}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sage.report.plots.FIGURES", chosen_ones)
        return {plot.title: plot for plot in plots(the_group(runs), "group")}


# What tells curves apart.


def test_the_line_styles_of_a_plot_are_distinct_and_omissions_are_noted(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", steps=4, steps_per_epoch=2)
    for i in range(NUM_LINE_STYLES + 1):
        pretend(tmp_path, "topk", steps=4, steps_per_epoch=2, density=0.01 * (i + 1))
    group = the_group(tmp_path)
    assert len(set(line_styles(NUM_LINE_STYLES))) == NUM_LINE_STYLES
    found = drawn(tmp_path, "metric_by_epoch", "density_by_step", "payload")
    for title in ("Accuracy by epoch", "Density"):
        legend = found[title].legend
        shown = [assign_line_styles(group)[label].svg for label in legend]
        assert len(set(shown)) == len(shown) >= NUM_LINE_STYLES - 1
        assert (
            f"{NUM_LINE_STYLES} of {NUM_LINE_STYLES + 2} settings are drawn, the best by accuracy"
            in found[title].caption
        )
    # The accuracies of the made-up runs rise with the density: the least dense are left out, and exact never.
    names = [setting.label for setting in chosen(group)]
    assert names[0] == "exact"
    assert "topk density=0.01" not in names
    assert f"{NUM_LINE_STYLES - 30} more settings are not drawn" in found["Payload of a step"].caption


def test_line_plots_have_a_legend_of_the_settings_that_they_show(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.01, seed=0)
    pretend(tmp_path, "topk", density=0.01, seed=1)
    main([tmp_path], tmp_path / "report")
    (text,) = written(tmp_path / "report", "html")
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    assert [re.findall(r"</svg>([^<]+)</li>", each) for each in legends] == [
        *[["exact", "topk"]] * 4,
        ["topk"],  # exact has no density to hold
    ]
    assert {title: plot.legend for title, plot in drawn(tmp_path, "step_time").items()} == {"Step time": ()}


# Axes.


@settings(max_examples=examples(25), deadline=None)
@given(
    st.floats(1e-6, 1e6),
    st.floats(1e-9, 1e3),
    st.sampled_from([percent, size, duration, number]),
)
def test_no_two_ticks_in_view_have_the_same_label(low: float, width: float, text: Callable[..., str]) -> None:
    assume(width > 1e-5)
    axes = Figure().subplots()
    values = [low, low * (1 + width)]
    axes.plot([0, 1], values)
    scale(axes, "y", values, text)
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top and tick > 0]
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.get_yticks()))
    shown = [
        label
        for tick, label in zip(axes.get_yticks(), labels, strict=True)
        if bottom <= tick <= top and tick > 0
    ]
    # Minutes and hours are whole: a time of more than a minute is told to the second.
    if text is not duration or max(ticks, default=0) < 60:
        assert len(set(shown)) == len(shown)


def test_a_density_that_hardly_varies_has_ticks_with_enough_digits(tmp_path: Path) -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], [0.009998, 0.010002])
    scale(axes, "y", [0.009998, 0.010002], percent)
    formatter = axes.yaxis.get_major_formatter()
    assert isinstance(formatter, DistinctLabels)
    labels = formatter.format_ticks(list(axes.get_yticks()))
    assert len(set(labels)) == len(labels) > 3


def test_a_diverging_curve_is_clipped_with_a_note_and_does_not_flatten_the_others(tmp_path: Path) -> None:
    calm = numpy.linspace(2.3, 0.1, 50)
    axes = Figure().subplots()
    note = limit(axes, {"topk": calm, "exact": calm - 0.05, "signsgd": numpy.exp(numpy.arange(50))}, number)
    bottom, top = axes.get_ylim()
    assert bottom <= 0.05 < 2.3 <= top < 15
    assert note.startswith("Cut off: signsgd (reaches 1.9")
    assert "topk" not in note
    # Of two, the one that stays.
    note = limit(axes, {"exact": calm, "signsgd": -numpy.exp(numpy.arange(50))}, number)
    assert "signsgd" in note
    assert axes.get_ylim()[0] > -10
    assert limit(axes, {"exact": calm, "topk": calm * 1.3}, number) == ""
    assert limit(axes, {"nan": numpy.full(3, math.nan)}, number) == ""


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), min_size=1, max_size=6))
def test_every_curve_that_leaves_the_range_is_noted(curves: list[list[float]]) -> None:
    axes = Figure().subplots()
    note = limit(axes, {f"c{i}": numpy.array(y) for i, y in enumerate(curves)}, number)
    bottom, top = axes.get_ylim()
    outside = [i for i, y in enumerate(curves) if min(y) < bottom or max(y) > top]
    assert bool(outside) == note.startswith("Cut off")
    assert len(outside) <= len(curves) / 2 or len(curves) == 1, "most curves are typical"


def test_a_page_with_a_diverged_run_is_readable(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.01)
    wild = pretend(tmp_path, "signsgd", density=0.1)
    lines = [json.loads(line) for line in (wild / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line["loss"] = 10.0 ** (line["step"] // 2)
    (wild / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Cut off: signsgd" in drawn(tmp_path, "loss_by_step")["Training loss"].caption


def test_a_single_evaluation_of_a_single_run_has_no_plot(tmp_path: Path) -> None:
    pretend(tmp_path, "topk", density=0.01, steps=10)
    assert set(drawn(tmp_path)) == {"Training loss", "Density", "Payload of a step"}


def test_the_payload_axis_states_its_unit_and_scale(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.3)
    assert "logarithmic" not in drawn(tmp_path, "payload")["Payload of a step"].svg
    pretend(tmp_path, "sage", density=0.001)
    assert "bytes, on a logarithmic axis" in drawn(tmp_path, "payload")["Payload of a step"].svg


def test_accuracy_is_drawn_against_bytes_and_time_together(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    assert not drawn(tmp_path, "pareto")
    pretend(tmp_path, "topk", density=0.01)
    plot = drawn(tmp_path, "pareto")["Accuracy against bytes and time"]
    assert plot.legend == ("exact", "topk")
    assert "training time" in plot.svg


def test_labels_and_folders_may_contain_any_character(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    pretend(runs, "topk", density=0.1, rule="\x1b[31m\u202e\x00 \U0001f600 数")
    pretend(runs, "topk", density=0.1, rule="$x")
    (pretend(runs, "sage", density=0.1) / "result.json").write_text("{}")
    main([runs.rename(tmp_path / os.fsdecode(b"caf\xe9"))], tmp_path / "report")
    for text in written(tmp_path / "report", "html", "md", "csv"):
        assert not set(text) & {"\x1b", "\x00", "\u202e"}
        assert r"rule=\x1b[31m\u202e\x00" in text
        assert "数" in text
        assert r"caf\xe9" in text


# Folders and files.


def test_a_linked_run_folder_is_read_once_and_cycles_of_links_terminate(tmp_path: Path) -> None:
    real = pretend(tmp_path / "elsewhere", "topk", density=0.1)
    runs = tmp_path / "runs"
    pretend(runs, "exact")
    (runs / "linked").symlink_to(real)
    (runs / "circle").symlink_to(runs)
    (runs / "nowhere").symlink_to(tmp_path / "absent")
    assert set(read(runs)) == {"exact", "topk"}
    assert set(read(runs, tmp_path / "elsewhere")) == {"exact", "topk"}, "by both names, once"


def test_a_run_whose_metrics_are_gone_is_named_in_one_line(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    (pretend(tmp_path, "topk", density=0.1) / "metrics.jsonl").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")  # of another program
    runs, unreadable = read_runs([tmp_path])
    assert len(runs) == 1
    ((folder, why),) = unreadable.items()
    assert "topk" in folder.name
    assert why == "metrics.jsonl is missing: the run started, but its records have been deleted"


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path / "mine", "exact")
    theirs = pretend(tmp_path / "theirs", "topk", density=0.1)
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("sage.report.runs.os.scandir", refusing)
    runs, unreadable = read_runs([tmp_path])
    assert len(runs) == 1
    assert unreadable == {theirs: "cannot be read: Permission denied"}
    assert main([tmp_path], tmp_path / "report") == 0


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "result.json", "metrics.jsonl"])
def test_whatever_one_file_contains_the_other_runs_are_shown(tmp_path: Path, name: str) -> None:
    pretend(tmp_path, "exact")
    damaged = pretend(tmp_path, "topk", density=0.1)
    for content in (b"", b"{}", b"[]", b"5\n", b'{"kind":"step"}\n', b"\xff\xfe\n", b"[" * 10_000):
        (damaged / name).write_bytes(content)
        runs, unreadable = read_runs([tmp_path])
        named = {folder.name: why for folder, why in unreadable.items()}
        if content or name != "metrics.jsonl":
            assert set(named) <= {damaged.name}
            assert all("\n" not in why for why in named.values())
        assert len(runs) + len(named) == 2
        assert "exact" in {row.label for group in grouped(runs) for row in group.rows}
    assert main([tmp_path], tmp_path / "report") == 0


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, "exact")
    main([tmp_path], tmp_path / "report")
    before = written(tmp_path / "report", "md", "csv", "html")
    pretend(tmp_path, "topk", density=0.1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="--output") as raised:
            main([tmp_path], tmp_path / "report")
    assert raised.value.errno == errno.ENOSPC
    assert written(tmp_path / "report", "md", "csv", "html") == before
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md",
        "report.csv",
        "report.html",
    }
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OSError, match="--output"):
        main([tmp_path], tmp_path / "report")


def test_runs_of_another_workload_without_figures_do_not_end_the_report(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", workload="begun", stop=0)
    pretend(tmp_path, "exact", workload="done")
    change(pretend(tmp_path, "topk", workload="other-metric"), "result.json", metric="loss", better="min")
    assert main([tmp_path], tmp_path / "report") == 0
    (text,) = written(tmp_path / "report", "html")
    assert [each in text for each in ("begun, 4 ranks", "done, 4 ranks", "lower is better")] == [True] * 3


def test_of_many_workloads_those_with_the_most_runs_have_figures(tmp_path: Path) -> None:

    for i in range(MAX_GROUPS + 1):
        pretend(tmp_path, "exact", workload=f"w{i:02d}", steps=4, steps_per_epoch=2)
    pretend(tmp_path, "topk", workload=f"w{MAX_GROUPS:02d}", steps=4, steps_per_epoch=2, density=0.1)
    main([tmp_path], tmp_path / "report")
    (text,) = written(tmp_path / "report", "html")
    sections = text.split("<section>")[1:]
    has_figures = ["<figure>" in section for section in sections]
    assert has_figures == [*[True] * (MAX_GROUPS - 1), False, True]
    assert all(
        ("No figures" in section) != shown for section, shown in zip(sections, has_figures, strict=True)
    )
    assert list(itertools.chain(*[re.findall("No figures: only the 12", each) for each in sections]))


# Bands over seeds.


def test_three_seeds_are_one_curve_with_a_band_and_two_are_two_curves(tmp_path: Path) -> None:
    def curves(num: int, **options: Any) -> tuple[int, int, str]:
        runs = tmp_path / f"{num}{sorted(options)}"
        pretend(runs, "exact")
        for seed in range(num):
            pretend(runs, "topk", density=0.01, seed=seed, **(options if seed == 0 else {}))
        seen: list[tuple[int, int]] = []
        draw = FIGURES["{metric} by epoch"]

        def counted(canvas: Canvas) -> Drawing | None:
            found = draw(canvas)
            (axes,) = canvas.figure.axes
            seen.append((len(axes.lines), len(axes.collections)))
            return found

        counted.__doc__ = draw.__doc__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sage.report.plots.FIGURES", {"{metric} by epoch": counted})
            patch.setattr("sage.report.plots.LEGENDS", (counted,))
            (plot,) = plots(the_group(runs), "group")
        ((lines, bands),) = seen
        return lines, bands, plot.caption

    assert curves(2)[:2] == (1 + 2, 0)
    lines, bands, caption = curves(7)
    assert (lines, bands) == (1 + 1, 1)
    assert "From 3 runs of a setting: their median" in caption
    # Runs of unequal length have no common grid.
    assert curves(3, steps=20)[:2] == (1 + 3, 0)
    assert curves(3, diverges=True)[:2] == (1 + 2, 0), "a run that has no finite value is not drawn"


@settings(max_examples=examples(50))
@given(
    st.lists(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=4, max_size=4), min_size=1, max_size=6)
)
def test_a_band_is_the_median_and_the_range_of_what_is_finite(values: list[list[float]]) -> None:
    middle, low, high = band(numpy.array(values))
    for i in range(4):
        finite = sorted(row[i] for row in values if math.isfinite(row[i]))
        if not finite:
            assert math.isnan(middle[i])
            continue
        assert (low[i], high[i]) == (finite[0], finite[-1])
        assert middle[i] == pytest.approx((finite[(len(finite) - 1) // 2] + finite[len(finite) // 2]) / 2)
