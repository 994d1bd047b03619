"""The sweeps that redo published tables have a run for every figure that SAGE can redo, full and reduced."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from sage.config import Config
from sage.jobs.sweep import read
from sage.predict.dimensionless import bits_per_second, groups
from sage.report.published.files import find
from sage.report.published.own_runs import fits

SWEEPS = Path(__file__).parents[2] / "jobs" / "sweeps"
BYTEPS = ("byteps-cifar100", "byteps-slow", "byteps-imagenet")
TABLES = ("sage-tables", "accordion-tables", "ptb-lm", "ncf", "utility", "sidco", *BYTEPS)
REDUCED = [f"{name}-reduced" for name in TABLES]


@cache
def runs(name: str) -> list[Config]:
    return read(SWEEPS / f"{name}.toml", untuned=True).configs


def head(name: str) -> str:
    """The comment at the top of a sweep, on one line."""
    lines = (SWEEPS / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:end])


@pytest.mark.parametrize(
    ("source", "sweeps"), [("sage", ["sage-tables"]), ("accordion", ["accordion-tables"]), ("byteps", BYTEPS)]
)
@pytest.mark.parametrize("form", [0, 1], ids=["full", "reduced"])
def test_every_figure_with_a_workload_and_a_reducer_has_its_run(
    source: str, sweeps: Sequence[str], form: int
) -> None:
    names = sweeps if form == 0 else [f"{sweep}-reduced" for sweep in sweeps]
    configs = [config.to_dict() for name in names for config in runs(name)]
    redone = 0
    for table in find(source).tables:
        for workload in table.workloads[form : form + 1]:
            ours = [config for config in configs if config["workload"] == workload]
            for row in table.rows:
                if row.reducer is not None:
                    assert any(fits(row, config) for config in ours), row
                    redone += 1
    assert redone > 5


@pytest.mark.parametrize("name", [*TABLES, *REDUCED])
def test_the_dense_references_run_wherever_a_method_does(name: str) -> None:
    def place(config: Config) -> tuple[object, ...]:
        options = {**config.model_options, **config.data_options}
        return config.workload, config.seed, config.lr, config.batch_size, config.steps, repr(options)

    configs = [config for config in runs(name) if not config.profile]
    for reducer in ("exact", "bf16"):
        dense = {place(config) for config in configs if config.reducer == reducer}
        assert {place(config) for config in configs} <= dense


@pytest.mark.parametrize("name", [*TABLES, *REDUCED])
def test_the_references_overlap_wherever_they_run(name: str) -> None:
    dense = {
        mount: {
            (config.workload, config.reducer, config.batch_size)
            for config in runs(name)
            if config.mount == mount
        }
        for mount in ("whole", "ddp")
    }
    ours = {each for each in dense["whole"] if each[1] in ("exact", "bf16")}
    assert {reducer for _, reducer, _ in dense["ddp"]} >= {"exact", "bf16"}
    assert ours <= dense["ddp"]


@pytest.mark.parametrize("name", ["ptb-lm", "ptb-lm-reduced"])
def test_every_method_of_the_language_model_is_tuned_over_five_points(name: str) -> None:
    points: dict[tuple[object, ...], set[float]] = {}
    for config in read(SWEEPS / f"{name}.toml", pilot=True).configs:
        method = (config.reducer, config.reducer_options.get("density"))
        points.setdefault(method, set()).add(config.lr)
    methods = {(config.reducer, config.reducer_options.get("density")) for config in runs(name)}
    assert set(points) == methods
    assert {len(each) for each in points.values()} == {5}
    assert {config.data_options["evaluate_on"] for config in runs(name)} == {"valid"}


def test_the_language_model_has_the_settings_that_the_study_chose_and_references_with_each_of_them() -> None:
    def settings(config: Config) -> tuple[float, object, object]:
        return config.lr, config.data_options["bptt"], config.model_options["dropout"]

    found: dict[tuple[str, object], set[tuple[float, object, object]]] = {}
    for config in runs("ptb-lm-settings"):
        assert config.seed in (1111, 2222, 3333)
        method = (config.reducer, config.reducer_options.get("density"))
        found.setdefault(method, set()).add(settings(config))
    note = find("gradcomp").note
    assert "topk 0.1 has learning rate 24, bptt 36, dropout 0.69; topk 0.0001 has 12, 25 and 0.55" in note
    assert "efsignsgd has 21 and 29" in note
    assert found[("topk", 0.1)] == {(24, 36, 0.69)}
    assert found[("topk", 0.0001)] == {(12, 25, 0.55)}
    assert found[("efsignsgd", None)] == {(21, 29, 0.7003)}
    every = {(20, 43, 0.7003)}.union(*found.values())
    assert found[("exact", None)] == found[("bf16", None)] == every


@pytest.mark.parametrize("name", ["sidco", "sidco-reduced"])
def test_each_benchmark_of_sidco_has_a_baseline_with_a_bucket_per_tensor_and_one_with_those_of_ddp(
    name: str,
) -> None:
    baselines = {
        (config.workload, config.seed, config.bucket_mb)
        for config in runs(name)
        if config.reducer == "exact" and config.mount == "ddp"
    }
    places = {(config.workload, config.seed) for config in runs(name)}
    assert baselines == {(*place, bucket_mb) for place in places for bucket_mb in (1e-6, 25.0)}
    published = [table.workloads for table in find("sidco").tables if table.workloads]
    small = {"digits", "lstm-topics", "deepspeech-synthetic-tones"}
    wanted = {workloads[0] for workloads in published} if name == "sidco" else small
    assert wanted <= {workload for workload, _ in places}


def test_the_utility_study_has_the_models_of_its_timing_runs() -> None:
    (timing,) = (table for table in find("utility").tables if table.name == "timing")
    every = runs("utility")
    assert {*timing.workloads} <= {config.workload for config in every}
    bert = [config for config in every if config.workload == "bert-sogou-utility"]
    assert {(config.steps, config.bucket_mb) for config in bert if config.mount == "ddp"} == {(100, 45)}
    assert {config.mount for config in bert} == {"ddp", "whole"}
    images = [config for config in every if config.workload in timing.workloads and config not in bert]
    assert {(config.steps, config.batch_size) for config in images} == {(61, size) for size in (16, 32, 64)}


def test_a_reduced_form_runs_on_processors_with_data_that_needs_no_download() -> None:
    for name in REDUCED:
        for config in runs(name):
            assert config.device == "cpu"
            assert config.data in ("digits", "topics", "imports", "synthetic_tones")


@pytest.mark.parametrize("name", [*TABLES, *REDUCED])
def test_the_head_of_a_sweep_gives_its_groups_and_a_reduced_one_what_is_not_kept(name: str) -> None:
    assert "Groups" in head(name)
    assert re.search(r"\bW = \d+", head(name))
    assert ("Not kept" in head(name)) == (name in REDUCED)


def test_the_world_size_is_that_of_the_full_form_except_where_the_head_states_another() -> None:
    for name in TABLES:
        full, reduced = ({config.world_size for config in runs(each)} for each in (name, f"{name}-reduced"))
        assert full == reduced or "Not kept: W," in head(f"{name}-reduced")


def test_the_groups_and_bandwidths_in_the_heads_follow_from_their_inputs() -> None:
    (table,) = (table for table in find("sage").tables if table.name == "step-cifar10")
    for scale in table.scales:
        shown = f"{scale.groups.communication:.3g}"
        assert f"S0/(B t_b) = {shown}" in head("sage-tables") or shown in head("sage-tables-reduced")
    bounds = {
        each.name: f"{scale.groups.communication:.3g}"
        for each in find("byteps").tables
        for scale in each.scales
    }
    for name, titles in (
        ("byteps-cifar100", ("guide-cifar100", "docs-cifar100")),
        ("byteps-slow", ("docs-slow",)),
        ("byteps-imagenet", ("guide-resnet50", "guide-vgg16")),
    ):
        for title in titles:
            assert bounds[title] in head(name)
            assert bounds[title] in head(f"{name}-reduced")
    (shares,) = (table for table in find("sidco").tables if table.name == "communication")
    for (
        row
    ) in shares.rows:  # two passes of a ring of 8 over fp32, twice bf16; 3/2 of backward is all computation
        about = 1.5 * row.value / (100 - row.value) / (2 * 7 / 8 * 2)
        assert f"{about:.3g}" in shares.note
        assert f"{about:.3g} ({row.method})" in head("sidco")
        assert f"{about:.3g} ({row.method})" in head("sidco-reduced")
    digits = 2 * 269_434
    for name, group, size, seconds, shown in (
        ("sage-tables-reduced", 0.0911, digits, 0.020, "2.37 Gbit/s"),
        ("sage-tables-reduced", 26.1, digits, 0.020, "8.26 Mbit/s"),
        ("accordion-tables-reduced", 26.1, digits, 0.0152, "11 Mbit/s"),
        ("ptb-lm-reduced", 68, 2 * 608_235, 0.0192, "7.5 Mbit/s"),
        ("byteps-cifar100-reduced", 0.129, digits, 0.020, "1.67 Gbit/s"),
        ("byteps-cifar100-reduced", 0.137, digits, 0.020, "1.57 Gbit/s"),
        ("byteps-slow-reduced", 34.3, digits, 0.020, "6.28 Mbit/s"),
        ("byteps-imagenet-reduced", 0.0698, digits, 0.020, "3.09 Gbit/s"),
        ("byteps-imagenet-reduced", 0.29, 2 * 55_210, 0.000_85, "3.58 Gbit/s"),
        ("sidco-reduced", 0.0476, digits, 0.040, "2.26 Gbit/s"),
        ("sidco-reduced", 0.643, digits, 0.040, "168"),
        ("sidco-reduced", 6.71, digits, 0.040, "16.1"),
        ("sidco-reduced", 1.71, digits, 0.040, "63 Mbit/s"),
        ("sidco-reduced", 6.71, 2 * 608_235, 0.0384, "37.8 Mbit/s"),
        ("sidco-reduced", 1.71, 2 * 200_264, 0.286, "6.55 Mbit/s"),
        ("utility-reduced", 3.18, digits, 0.010, "136"),
        ("utility-reduced", 0.159, digits, 0.010, "2711 Mbit/s"),
    ):
        bandwidth = bits_per_second(communication=group, dense_bytes=size, backward_seconds=seconds)
        number, _, unit = shown.partition(" ")
        assert bandwidth / (1e9 if unit.startswith("G") else 1e6) == pytest.approx(float(number), rel=0.02)
        assert shown in head(name)
    for scale in (scale for table in find("utility").tables for scale in table.scales):
        assert f"{scale.groups.communication:.3g}" in head("utility")
    lstm = groups(world_size=4, dense_bytes=43_722_400, bits_per_second=1e8, backward_seconds=0.0514)
    assert f"S0/(B t_b) is {lstm.communication:.0f} at 100 Mbit/s" in head("ptb-lm")
