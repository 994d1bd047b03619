"""Tests that a report aggregates seeds and compares runs only with matching baselines."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy
import pytest
from fuzz import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_runs import change, pretend, read, the_group
from scipy import stats

from sage.report.curves import front
from sage.report.groups import Group
from sage.report.labels import labels
from sage.report.runs import Run
from sage.report.seeds import ratio, spread, t_quantile
from sage.report.settings import Row
from sage.report.sharing import sharing
from sage.report.table import Table
from sage.report.tables import headline, tables

POSITIVE = st.floats(0.01, 1e4)


def table(group: Group, title: str) -> dict[str, dict[str, str]]:
    """A table's cells, by label and heading."""
    (found,) = [each for each in tables(group) if each.title == title]
    return {line[0]: dict(zip(found.heading, line, strict=True)) for line in found.lines}


def about(group: Group, title: str) -> str:
    """The note at the head of a table."""
    return next(each.note for each in tables(group) if each.title == title)


# Density.


def test_runs_without_a_target_density_have_no_on_target_steps(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "adacomp", miss=0.25)  # an older record, which says that 1.0 was asked for
    newer = pretend(tmp_path, "variance", miss=0.25)
    lines = (newer / "metrics.jsonl").read_text().replace('"density_asked": 1.0', '"density_asked": null')
    (newer / "metrics.jsonl").write_text(lines)
    change(newer, "result.json", density_asked=None)
    pretend(tmp_path, "topk", density=0.01)
    pretend(tmp_path, "mstopk", density=1.0, miss=1.0)
    group = the_group(tmp_path)
    shown = {label: tuple(list(cells.values())[1:]) for label, cells in table(group, "Density").items()}
    assert shown == {
        "exact": ("–", "100 %", "–"),
        "adacomp": ("–", "25 %", "–"),
        "variance": ("–", "25 %", "–"),
        "topk": ("1 %", "1.1 %", "100 %"),
        "mstopk": ("100 %", "100 %", "100 %"),
    }
    values = {row.label: row.values for row in group.rows}
    assert values["adacomp"]["density_met"] is values["variance"]["density_asked"] is None


# Speed.


def test_seeds_are_aggregated_into_one_line_with_spread_and_interval(tmp_path: Path) -> None:
    exact, topk = [50.0, 40.0, 45.0], [100.0, 90.0, 86.0]
    for seed in range(3):
        pretend(tmp_path, "exact", seed=seed, seconds=1 / exact[seed])
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=1 / topk[seed])
    group = the_group(tmp_path)
    assert [setting.label for setting in group.settings] == ["exact", "topk"]
    line = table(group, "Speed")["topk"]
    assert line["steps/s"] == f"{numpy.mean(topk):.4g} ± {numpy.std(topk, ddof=1):.2g}"
    assert line["n"] == "3"
    assert about(group, "Speed").startswith("Reference: exact (n = 3), ")
    expected = stats.ttest_rel(numpy.log(topk), numpy.log(exact)).confidence_interval()
    found = group.settings[1].speed_up
    assert found is not None
    assert found.interval == pytest.approx([math.exp(expected.low), math.exp(expected.high)], rel=1e-3)
    assert line["95 % interval"].endswith("paired")
    assert [row.values["speed_up"] for row in group.rows[:3]] == pytest.approx([50 / 45, 40 / 45, 1])


def test_one_noisy_exact_run_gives_no_interval_and_the_same_baseline_to_all_seeds(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", seconds=1 / 395)
    for seed in range(2):
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=1 / 200)
    group = the_group(tmp_path)
    line = table(group, "Speed")["topk"]
    assert line["95 % interval"] == "none: one run on a side"
    assert about(group, "Speed").startswith("Reference: exact (n = 1), ")
    assert [row.values["speed_up"] for row in group.rows[1:]] == pytest.approx([200 / 395] * 2)


def test_a_run_with_another_batch_size_is_not_a_baseline(tmp_path: Path) -> None:
    change(pretend(tmp_path, "exact"), "config.json", batch_size=7)
    pretend(tmp_path, "topk", density=0.01)
    line = table(the_group(tmp_path), "Speed")["topk"]
    assert line["speed-up"] == "–"


def test_the_exact_runs_that_share_most_settings_are_the_baseline(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", seconds=0.1)
    change(pretend(tmp_path, "exact", seed=1, seconds=0.2), "config.json", lr=0.5)
    change(pretend(tmp_path, "topk", density=0.01, seconds=0.1), "config.json", lr=0.5)
    change(pretend(tmp_path, "sage", density=0.01, seconds=0.1), "config.json", lr=0.7)
    group = the_group(tmp_path)
    by_label = {each.label: each for each in group.settings}
    assert by_label["topk"].reference is by_label["exact lr=0.5"]
    assert table(group, "Speed")["topk"]["reference"] == "exact lr=0.5 (n = 1)"
    assert by_label["sage"].reference is not None, "the learning rate does not change what a step costs"


def test_the_fastest_dense_runs_that_overlap_are_the_reference_of_all_runs(tmp_path: Path) -> None:
    def under_ddp(reducer: str, seconds: float, **options: Any) -> None:
        folder = pretend(tmp_path, reducer, seed=1, seconds=seconds, **options)
        change(folder, "config.json", mount="ddp", seed=0)

    pretend(tmp_path, "exact", seconds=0.1)
    pretend(tmp_path, "topk", density=0.01, seconds=0.04)
    under_ddp("topk", 0.02, density=0.01)
    under_ddp("exact", 0.08)
    under_ddp("bf16", 0.05)
    group = the_group(tmp_path)
    by_label = {each.label: each for each in group.settings}
    assert sorted(by_label) == ["bf16 mount=ddp", "exact", "exact mount=ddp", "topk", "topk mount=ddp"]
    assert all(each.reference is by_label["bf16 mount=ddp"] for each in group.settings)
    lines = table(group, "Speed")
    assert {label: line["speed-up"] for label, line in lines.items()} == {
        "bf16 mount=ddp": "1×", "exact": "0.5×", "exact mount=ddp": "0.625×",
        "topk": "1.25×", "topk mount=ddp": "2.5×",
    }  # fmt: skip
    assert lines["topk"]["over exact (whole)"] == "2.5×"
    assert lines["topk mount=ddp"]["over exact (whole)"] == "5×"
    assert about(group, "Speed").startswith(
        "Reference: bf16 mount=ddp (n = 1), which overlaps communication with backward"
    )
    # Compression is relative to exact in fp32.
    assert by_label["exact mount=ddp"].mean("compression") == by_label["exact"].mean("compression") == 1


def test_runs_with_local_updates_are_no_reference(tmp_path: Path) -> None:
    def with_rounds(reducer: str, seconds: float) -> None:
        folder = pretend(tmp_path, reducer, seed=1, seconds=seconds)
        change(folder, "config.json", local_steps=4, seed=0)

    with_rounds("exact", 0.02)
    with_rounds("bf16", 0.01)
    alone = the_group(tmp_path)
    assert [each.reference for each in alone.settings] == [None, None]
    assert about(alone, "Speed").startswith("There is no dense run")
    pretend(tmp_path, "exact", seconds=0.1)
    group = the_group(tmp_path)
    assert sorted(each.label for each in group.settings) == ["bf16", "exact", "exact local_steps=4"]
    assert {each.reference.label for each in group.settings if each.reference} == {"exact"}
    assert table(group, "Speed")["exact local_steps=4"]["speed-up"] == "5×"


def test_runs_with_optimisers_that_communicate_are_no_reference(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact", seed=1, seconds=0.02)
    change(folder, "config.json", optimizer="demo", seed=0)
    alone = the_group(tmp_path)
    assert [each.reference for each in alone.settings] == [None]
    assert about(alone, "Speed").startswith("There is no dense run")
    pretend(tmp_path, "exact", seconds=0.1)
    group = the_group(tmp_path)
    assert table(group, "Speed")["exact optimizer=demo"]["speed-up"] == "5×"


def test_the_head_says_if_the_reference_has_one_bucket(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact")
    change(folder, "config.json", mount="ddp")
    assert "one bucket" not in about(the_group(tmp_path), "Speed")
    change(folder, "config.json", bucket_mb=4.0)
    assert "fits into one bucket" in about(the_group(tmp_path), "Speed")
    change(folder, "config.json", bucket_mb=None)
    change(folder, "result.json", parameters=262_144)
    assert "fits into one bucket" in about(the_group(tmp_path), "Speed")


def test_without_runs_that_overlap_the_head_of_the_speeds_names_the_reference_as_un_overlapped(
    tmp_path: Path,
) -> None:
    pretend(tmp_path, "exact", seconds=0.05)
    pretend(tmp_path, "bf16", seconds=0.04)
    pretend(tmp_path, "topk", density=0.01, seconds=0.02)
    assert about(the_group(tmp_path), "Speed").startswith("Reference: bf16 (n = 1), which is un-overlapped")
    assert table(the_group(tmp_path), "Speed")["topk"]["over exact (whole)"] == "2.5×"


def test_runs_under_fsdp_are_not_those_of_exact_under_whole(tmp_path: Path) -> None:
    def under_fsdp(reducer: str, seconds: float, shards: int, **options: Any) -> None:
        folder = pretend(tmp_path, reducer, seed=shards, seconds=seconds, **options)
        change(folder, "config.json", mount="fsdp", shards=shards, seed=0)

    under_fsdp("exact", 0.05, shards=2)
    under_fsdp("topk", 0.1, shards=1, density=0.01)
    group = the_group(tmp_path)
    assert about(group, "Speed").startswith("Reference: exact (n = 1), which FSDP2 shards")
    line = table(group, "Speed")["topk"]
    assert line["speed-up"] == "0.5×"
    assert "over exact (whole)" not in line
    pretend(tmp_path, "exact", seconds=0.2)
    assert table(the_group(tmp_path), "Speed")["topk mount=fsdp"]["over exact (whole)"] == "2×"


def test_runs_with_compressed_shards_are_no_reference_and_have_one(tmp_path: Path) -> None:
    for reducer, seconds, formats in (
        ("exact", 0.05, {}),
        ("bf16", 0.02, {"shard_reduce": "int4"}),
        ("topk", 0.1, {"shard_gather": "int8", "shard_block": 64}),
    ):
        folder = pretend(tmp_path, reducer, seconds=seconds)
        change(folder, "config.json", mount="fsdp", shards=2, **formats)
    group = the_group(tmp_path)
    assert about(group, "Speed").startswith("Reference: exact (n = 1), which FSDP2 shards")
    by_reducer = {each.label.split()[0]: each for each in group.settings}
    assert {name: each.mean("speed_up") for name, each in by_reducer.items()} == {
        "exact": pytest.approx(1.0),
        "bf16": pytest.approx(2.5),
        "topk": pytest.approx(0.5),
    }


def test_the_compression_is_not_relative_to_exact_with_shards(tmp_path: Path) -> None:
    exact = pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.01, miss=1.0)
    for folder in tmp_path.iterdir():
        change(folder, "config.json", mount="fsdp", shards=2)
    # Whole gradients of 4 MB make 6 MB each way; FSDP2's own collectives are counted with them.
    change(exact, "result.json", wire_sent_per_step=18_000_000, wire_received_per_step=18_000_000)
    by_reducer = {each.label.split()[0]: each for each in the_group(tmp_path).settings}
    assert by_reducer["topk"].mean("compression") == pytest.approx(6_000_000 / 240_000)
    assert by_reducer["exact"].mean("compression") == pytest.approx(1 / 3)


def test_the_exposed_communication_of_a_step_is_the_median_of_its_records(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "topk", density=0.01)
    assert "Reduction of a step" not in {each.title for each in tables(the_group(tmp_path))}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    for i, record in enumerate(steps[1:], 1):  # a skipped step has none
        record |= {"encode_seconds": 0.002, "exposed_seconds": 5.0 if i == 3 else 0.004}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    line = table(the_group(tmp_path), "Reduction of a step")["topk"]
    assert (line["encode"], line["decode"], line["exposed"]) == ("2 ms", "–", "4 ms")


def test_bandwidths_are_of_the_dense_gradient_and_the_whole_reduction(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "topk", density=0.01, miss=1.0)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "step":
            record |= {"encode_seconds": 0.001, "exposed_seconds": 0.002, "decode_seconds": 0.001}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # 4 MB of four ranks in 4 ms; a ring sends 2·3/4 of them on each link.
    line = table(the_group(tmp_path), "Reduction of a step")["topk"]
    assert (line["algbw"], line["busbw"]) == ("1 GB/s", "1.5 GB/s")
    # A hundredth of the elements, each of 4 bytes and an index of 4.
    assert table(the_group(tmp_path), "Traffic of a step")["topk"]["bits/element"] == "0.64"
    change(folder, "config.json", mount="ddp")  # where backward hides a part of the communication
    line = table(the_group(tmp_path), "Reduction of a step")["topk"]
    assert (line["exposed"], line["algbw"], line["busbw"]) == ("2 ms", "–", "–")


def test_error_and_memory_are_shown_where_they_are_recorded(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")  # as an older run
    assert "Error and memory" not in {each.title for each in tables(the_group(tmp_path))}
    for seed, error in enumerate((0.5, 0.7)):
        folder = pretend(tmp_path, "topk", density=0.01, seed=seed)
        change(folder, "result.json", vnmse=error, state_bytes=4_000_000, peak_bytes=500_000_000)
    shown = table(the_group(tmp_path), "Error and memory")
    assert [*shown["topk"].values()] == ["topk", "0.6", "4 MB", "500 MB"]
    assert [*shown["exact"].values()] == ["exact", "–", "–", "–"]


def test_runs_without_figures_have_a_table_of_their_own_with_the_reason(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    failed = pretend(tmp_path, "topk", density=0.01, stop=0)
    (failed / "failure.json").write_text('{"error": "rank 1: out of\\n memory\\u001b[31m"}')
    stopped = pretend(tmp_path, "sage", density=0.01, stop=0)
    damaged = pretend(tmp_path, "dgc", density=0.01, stop=20)
    (damaged / "failure.json").write_text("")
    group = the_group(tmp_path)
    assert set(table(group, "Outcome")) == set(table(group, "Speed")) == {"exact", "dgc"}
    shown = table(group, "Not finished")
    assert shown["topk"]["reason"] == "rank 1: out of memory"
    assert shown["topk"]["status"] == "unfinished at step 0, failed"
    assert shown["sage"]["reason"].startswith("stopped at step 0")
    assert "failure.json" in shown["dgc"]["reason"]
    assert "empty" in shown["dgc"]["reason"]
    assert stopped.name in {Path(row.values["folder"]).name for row in group.unfinished}


def test_a_group_in_which_no_run_has_figures_has_only_that_table(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", stop=0)
    group = the_group(tmp_path)
    assert [each.title for each in tables(group)] == ["Not finished"]
    assert group.settings == []


def test_compression_without_an_exact_run_follows_from_the_number_of_parameters(tmp_path: Path) -> None:
    pretend(tmp_path, "topk", density=0.01, miss=1.0)
    pretend(tmp_path, "topk", density=0.01, miss=1.0, stop=20, seed=1)
    pretend(tmp_path, "topk", density=0.01, miss=1.0, world_size=1)
    figures = {values["folder"]: values["compression"] for values in read(tmp_path).values()}
    # A ring of 4: each way 2·3/4 of 4 MB; top-k hands 80 kB to each of three others.
    assert sorted(value for value in figures.values() if value) == pytest.approx([6_000_000 / 240_000] * 2)


def test_the_links_that_the_probe_measured_are_shown(tmp_path: Path) -> None:
    for seed, bits in enumerate([96.4e6, 90e6, 99e6]):
        links = {"alpha_seconds": 0.0003 + seed / 1e4, "bits_per_second": bits}
        change(pretend(tmp_path, "exact", seed=seed), "manifest.json", links=links)
    result = headline(the_group(tmp_path))
    assert "latency 0.4 ms (0.3 ms to 0.5 ms)" in result
    assert "bandwidth 96.4 Mbit/s (90 Mbit/s to 99 Mbit/s)" in result


@settings(max_examples=examples(100))
@given(st.lists(POSITIVE, min_size=2, max_size=8), st.lists(POSITIVE, min_size=2, max_size=8))
def test_an_unpaired_interval_is_welchs_and_is_never_too_narrow(x: list[float], y: list[float]) -> None:
    a, b = numpy.log(x), numpy.log(y)
    assume(min(a.std(), b.std()) > 1e-3)
    # Seeds that have nothing in common cannot be paired.
    found = ratio(list(enumerate(x)), [(100 + seed, value) for seed, value in enumerate(y)])
    assert found is not None
    assert found.interval is not None
    assert found.how == "unpaired"
    assert math.log(found.mean) == pytest.approx(a.mean() - b.mean(), abs=1e-9)
    exact = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    low, high = (
        map(math.log, found.interval)
        if found.interval[0] > 0 and found.interval[1] < math.inf
        else (
            -math.inf,
            math.inf,
        )
    )
    assert low <= exact.low + 0.002 * abs(exact.high - exact.low)
    assert high >= exact.high - 0.002 * abs(exact.high - exact.low)


@given(st.floats(1, 1e6))
def test_students_quantile_is_never_below_the_exact_one(degrees: float) -> None:
    assert t_quantile(degrees) >= stats.t.ppf(0.975, degrees) - 5e-4


def test_a_spread_omits_values_that_are_not_finite_and_counts_them() -> None:
    found = spread([1.0, math.nan, 3.0, None])
    assert found is not None
    assert (found.mean, found.num, found.num_not_finite) == (2.0, 2, 1)
    alone = spread([math.nan])
    assert alone is not None
    assert math.isnan(alone.mean)
    assert spread([None]) is None


# Labels, sharing, the front: against their definitions, written plainly.


@st.composite
def configs(draw: st.DrawFn) -> list[Run]:
    values = st.sampled_from([None, 1, 1.0, 2, "a"])
    runs = []
    for i in range(draw(st.integers(1, 8))):
        config = {
            "reducer": draw(st.sampled_from(["exact", "topk"])),
            "seed": draw(st.integers(0, 2)),
            "reducer_options": draw(st.dictionaries(st.sampled_from(["density", "rule"]), values)),
            "model_options": draw(st.dictionaries(st.sampled_from(["depth"]), values)),
            "milestones": draw(st.sampled_from([[1, 2], [1]])),
        }
        runs.append(fake(Path(f"/runs/{i}"), config))
    return runs


def fake(folder: Path, config: dict[str, Any], manifest: dict[str, Any] | None = None) -> Run:
    """A run of which only the configuration and the manifest matter."""
    from sage.report.run_summary import Figures
    from sage.report.steps import Steps

    return Run(
        folder=folder,
        config=config,
        manifest=manifest or {},
        is_finished=True,
        figures=Figures(metric="accuracy", better="max", steps=1),
        steps=Steps.of([]),
        epochs=[],
        events=[],
        failure="",
    )


@settings(max_examples=examples(100))
@given(configs())
def test_a_label_names_the_settings_in_which_a_reducers_runs_differ(runs: list[Run]) -> None:
    for run, (label, series) in zip(runs, labels(runs), strict=True):
        others = [each.settings for each in runs if each.config["reducer"] == run.config["reducer"]]
        differing = [
            name for name, value in run.settings.items() if any(value != each.get(name) for each in others)
        ]
        words = label.split(" in /runs")[0].split()
        assert [word.partition("=")[0] for word in words if "=" in word] == differing
        assert "seed=" not in series
    assert len({label for label, _ in labels(runs)}) == len(runs), "a label names one run"


@settings(max_examples=examples(100))
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 10), st.sets(st.sampled_from("ab"), min_size=1)),
        max_size=8,
    )
)
def test_runs_that_overlap_on_a_host_share_it(sessions: list[tuple[int, int, set[str]]]) -> None:
    def at(second: int) -> str:
        return f"2026-01-01T00:00:{second:02d}+00:00"

    runs = [
        fake(
            Path("/run"),
            {},
            {"time": at(start), "hosts": sorted(hosts), "load": {"end": {"time": at(start + length)}}},
        )
        for start, length, hosts in sessions
    ]
    for i, ((start, length, hosts), count) in enumerate(zip(sessions, sharing(runs), strict=True)):
        beside: dict[str, int] = defaultdict(int)
        for k, (begun, lasted, theirs) in enumerate(sessions):
            if k != i and begun < start + length and start < begun + lasted:
                for host in hosts & theirs:
                    beside[host] += 1
        assert count == max(beside.values(), default=0)


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8), st.sampled_from(["max", "min"]))
def test_no_point_dominates_one_on_the_front(points: list[tuple[int, int]], better: str) -> None:
    sign = 1 if better == "max" else -1
    kept = front([cost for cost, _ in points], [value for _, value in points], better)

    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and sign * a[1] >= sign * b[1] and a != b

    on_front = {point for point in points if not any(dominates(other, point) for other in points)}
    assert {points[i] for i in kept} == on_front


def test_a_row_states_whether_it_has_figures(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", stop=0)
    pretend(tmp_path, "topk", density=0.1, stop=3)
    rows: dict[str, Row] = {row.label: row for row in the_group(tmp_path).rows}
    assert not rows["exact"].has_figures
    assert rows["topk"].has_figures


def test_every_line_has_as_many_cells_as_the_heading(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.1, stop=3)
    found: list[Table] = tables(the_group(tmp_path))
    assert len(found) == 5
    for each in found:
        assert {len(line) for line in each.lines} == {len(each.heading)}
        assert len(each.lines) == len(each.hints) == len(each.series)
