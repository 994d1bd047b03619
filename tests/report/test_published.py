"""The published tables as data: each file is valid, ratios are those of the tables, damage gives one line."""

import json
from pathlib import Path

import pytest

from sage import registry
from sage.cli.main import main
from sage.report.published.files import find, read, sources
from sage.report.published.tables import Row, Source
from sage.report.published.text import markdown, text

NAMES = list(sources())

VALID = """
title = "A source"
where = "a place"

[tables.t]
title = "A table"
metric = "accuracy"
source = "its text"
status = "verified"
baseline = "dense"

[[row]]
table = "t"
method = "dense"
reducer = "exact"
value = 0.5

[[row]]
table = "t"
method = "sparse"
reducer = "topk"
options = { density = 0.01 }
value = 0.4
"""


def figure(source: Source, table: str, method: str, metric: str) -> Row:
    (row,) = (row for row in source.rows if row.key == (table, metric, method))
    return row


@pytest.fixture
def fault(tmp_path: Path) -> "Fault":
    """The error that a file with this change has."""
    return Fault(tmp_path / "mine.toml")


class Fault:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, old: str, new: str) -> str:
        assert VALID.count(old) == 1
        self.path.write_text(VALID.replace(old, new))
        with pytest.raises(ValueError, match=r"^mine\.toml") as caught:
            read(self.path)
        message = str(caught.value)
        assert "\n" not in message
        return message


@pytest.mark.parametrize("name", NAMES)
def test_every_file_reads_and_each_figure_has_a_source_and_a_status(name: str) -> None:
    source = find(name)
    assert source.name == name
    assert source.title
    assert all(row.source and row.status for row in source.rows)
    assert source.rows or source.note


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).rows])
def test_every_reducer_of_a_published_method_exists_and_accepts_its_options(name: str) -> None:
    specs = {(row.reducer, json.dumps(row.options)): row for row in find(name).rows if row.reducer}
    assert specs
    for row in specs.values():
        registry.load("reducers", row.reducer or "")(**row.options)


def test_ratios_are_those_computed_by_hand() -> None:
    slow = figure(find("byteps"), "docs-slow", "topk", "time")
    assert slow.ratio == pytest.approx(83.93 / 518.32)
    step = figure(find("sage"), "step-wikitext2", "topk", "step")
    assert step.ratio == pytest.approx(0.4419 / 0.1246)
    vgg = figure(find("accordion"), "powersgd-vgg19-cifar10", "PowerSGD, rank 1", "accuracy")
    assert vgg.ratio == pytest.approx(67.01 / 93.47)
    assert figure(find("byteps"), "docs-slow", "baseline", "time").ratio is None
    ranged = figure(find("utility"), "runs96", "SignSGD, ResNet-101", "time of backward and communication")
    assert (ranged.value, ranged.high, ranged.ratio) == (1042, 1075, None)


def test_the_groups_of_a_set_up_follow_from_its_figures() -> None:
    (table,) = (table for table in find("sage").tables if table.name == "step-cifar10")
    own, slow = (scale.groups for scale in table.scales)
    assert own.communication == pytest.approx(22_347_924 / (3.58e9 * 0.0685))
    assert slow.communication == pytest.approx(22_347_924 / (12.5e6 * 0.0685))
    assert own.encoding == slow.encoding == pytest.approx((0.106 + 0.015) / 0.0685)
    assert own.volume == pytest.approx(3 * 7.16e5 / 8 / 22_347_924, rel=1e-3)


def test_unverified_figures_are_printed_only_with_all_and_then_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = find("utility")
    others = [row for row in source.rows if row.status != "verified"]
    assert {row.status for row in others} == {"recalled", "second-hand"}
    assert main(["published", "utility"]) == 0
    output = capsys.readouterr().out
    assert "set-ups faster than optimised data parallel" in output
    assert "16.34 ms" not in output
    assert f"{len(others)} figures that are not verified are left out; --all prints them." in output
    assert main(["published", "utility", "--all"]) == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "16.34 ms" in each)
    assert line.endswith("recalled")
    (cells,) = (each for each in markdown(source).splitlines() if "16.34 ms" in each)
    assert cells.endswith("| recalled |")
    assert not any(row.status != "verified" for row in source.verified().rows)


def test_the_list_has_every_source_with_its_numbers_of_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["source", "verified", "other", "title"]
    assert [line.split()[0] for line in lines] == NAMES
    for line, name in zip(lines, NAMES, strict=True):
        assert sum(map(int, line.split()[1:3])) == len(find(name).rows)


def test_a_users_table_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    source = find(str(path))
    assert [row.ratio for row in source.rows] == [None, 0.8]
    lines = [line.split() for line in text(source)]
    assert ["dense", "exact", "accuracy", "0.5", "1×"] in lines
    assert ["sparse", "topk", "density=0.01", "accuracy", "0.4", "0.8×"] in lines


def test_a_wrong_key_is_named_with_its_row(fault: Fault) -> None:
    assert fault("value = 0.4", "valeu = 0.4") == (
        "mine.toml, row 2 (t, sparse): no key is called 'valeu'; did you mean 'value' or 'table'?"
    )
    assert fault('where = "a place"', 'place = "a place"').startswith("mine.toml: no key is called 'place'")
    assert fault('title = "A table"', 'titel = "A table"').startswith("mine.toml, table t: no key is called")


def test_a_missing_key_is_named_with_its_row(fault: Fault) -> None:
    assert fault("value = 0.4", "") == "mine.toml, row 2 (t, sparse) needs the key 'value'"
    assert fault('where = "a place"', "") == "mine.toml needs the key 'where'"


def test_a_wrong_status_lists_the_right_ones(fault: Fault) -> None:
    assert fault('status = "verified"', 'status = "true"') == (
        "mine.toml, row 1 (t, dense): status is 'true'; allowed is one of 'verified', 'second-hand', "
        "'recalled'"
    )


def test_a_baseline_that_does_not_exist_is_refused(fault: Fault) -> None:
    assert fault("value = 0.4", 'value = 0.4\nbaseline = "dnese"') == (
        "mine.toml, row 2 (t, sparse): the baseline is 'dnese'; allowed are the other methods of this table "
        "and metric: dense"
    )
    assert fault("value = 0.4", 'value = 0.4\nbaseline = "sparse"').endswith("and metric: dense")
    assert fault('baseline = "dense"', 'baseline = "none"') == (
        "mine.toml, table t: the baseline is 'none'; allowed are the methods of its rows: dense, sparse"
    )


def test_a_verified_figure_has_a_verified_baseline(fault: Fault) -> None:
    assert fault("value = 0.5", 'value = 0.5\nstatus = "recalled"') == (
        "mine.toml, row 2 (t, sparse): the status is verified, but that of its baseline is recalled; give "
        "this row the weaker of the two"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reducer = "topk"', 'reducer = "tpok"', "no reducer is called 'tpok'; did you mean 'topk'"),
        ("density = 0.01", "densty = 0.01", "no option of the reducer topk is called 'densty'; did you mean"),
        ("density = 0.01", 'density = "low"', "density is 'low'; allowed is a number"),
        ("value = 0.4", "value = 0.4\nsettings = { sede = 1 }", "no setting is called 'sede'; did you mean"),
        ("value = 0.4", "value = 0.4\nsettings = { seed = -1 }", "seed is -1; allowed is a whole number"),
        ("value = 0.4", "value = 0.4\nhigh = 0.3", "high is 0.3; allowed is a number above value, 0.4"),
        ("value = 0.4", 'value = "0.4"', "value is '0.4'; allowed is a number"),
        ('method = "sparse"', 'method = "dense"', "another row with the metric 'accuracy'"),
        ('reducer = "topk"', "", "options or settings without a reducer"),
        ('title = "A table"', 'title = "A table"\nworkloads = ["digts"]', "no workload is called 'digts'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(fault: Fault, old: str, new: str, message: str) -> None:
    assert message in fault(old, new)


def test_rows_that_are_not_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for given, result in (
        ("row = 3", r"mine\.toml: row is 3; allowed are tables written as \[\[row\]\]"),
        ("row = [3]", r"mine\.toml, row 1 is 3; allowed is a table of keys"),
        ("tables = 3", r"mine\.toml: tables is 3; allowed are tables written as \[tables\.NAME\]"),
    ):
        path.write_text(f'title = "A"\nwhere = "B"\n{given}')
        with pytest.raises(ValueError, match=f"^{result}$"):
            read(path)


def test_invalid_toml_or_a_table_that_is_not_a_source_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[tables")
    for argv, result in (
        (["published", str(path)], "broken.toml"),
        (["published", str(tmp_path / "none.toml")], "there is no file"),
        (["published", "sgae"], "no published source is called 'sgae'; did you mean 'sage'?"),
        (["published", "--runs", str(tmp_path)], "--runs needs a source"),
    ):
        assert main(argv) != 0
        output = capsys.readouterr()
        assert output.out == ""
        assert len(output.err.splitlines()) == 1
        assert result in output.err


def test_a_source_without_figures_has_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text('title = "A"\nwhere = "B"')
    with pytest.raises(ValueError, match=r"^empty\.toml has no row; a source without figures needs a note"):
        read(path)
    path.write_text('title = "A"\nwhere = "B"\nnote = "not retrievable"')
    assert read(path).rows == []
