"""Tests of gradients as plain .npy vectors: round trip, order, and what is refused without unpickling."""
# N = elements of a vector

import random
import tempfile
from pathlib import Path

import numpy
import pytest
import torch
from damage import damage
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.bench import npy, recorded, trace
from sage.bench.repetitions import inputs
from sage.cli.main import main

DIGITS = ["digits-ff", "--reducer", "exact", "--batch-size", "4"]


@settings(max_examples=examples(20), deadline=None, database=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    dtype=st.sampled_from(["<f4", ">f4", "<f8", ">f8"]),
)
def test_a_vector_that_numpy_saved_is_read_unchanged(values: list[float], dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "g.npy")
        numpy.save(path, numpy.array(values, dtype))
        read = npy.read(path)
        assert (read.name, len(read), read.world_size, read.numel) == ("g", 1, 1, len(values))
        assert read.gradient(0, 0).tolist() == values


@pytest.mark.parametrize("world_size", [1, 2])
def test_recorded_vectors_are_the_gradients_of_the_trace_in_full_precision(
    tmp_path: Path, world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--world-size", str(world_size), "--steps", "3", "--elements", "100"]
    assert main(["bench", "record", *DIGITS, *size, "--out", str(tmp_path / "trace.pt")]) == 0
    grads = tmp_path / "grads"
    assert main(["bench", "record", *DIGITS, *size, "--out", str(grads), "--format", "npy"]) == 0
    assert f"3 x {world_size} x 100 (steps, ranks, elements of" in capsys.readouterr().out
    kept, plain = trace.load(tmp_path / "trace.pt"), recorded.load(grads)
    assert sorted(path.name for path in grads.iterdir()) == sorted(
        f"digits-ff_r{rank}_gradients_iter_{step}.npy" for rank in range(world_size) for step in range(3)
    )
    assert (plain.name, plain.first, plain.world_size, len(plain)) == ("grads", 0, world_size, 3)
    for step in range(3):
        for rank in range(world_size):
            exact_N = plain.gradient(step, rank)
            codes_N, exponent = trace.encode(exact_N)
            assert torch.equal(codes_N, kept.codes_SWN[step, rank])
            assert exponent == int(kept.exponents_SW[step, rank])
            assert not torch.equal(exact_N, kept.gradient(step, rank))


def test_the_files_of_a_folder_are_in_natural_order_and_their_steps_are_in_their_names(
    tmp_path: Path,
) -> None:
    for step in (100, 9, 20):
        save(tmp_path / f"cifar10_resnet20_r0_gradients_iter_{step}.npy", [float(step)])
    save(tmp_path / "._iter_7.npy", [7.0])  # macOS's resource forks, and other hidden files
    (tmp_path / "notes.txt").write_text("x")
    read = npy.read(tmp_path)
    assert [read.gradient(i, 0).item() for i in range(3)] == [9, 20, 100]
    assert [read.number(i) for i in range(3)] == [9, 20, 100]
    assert (read.first, read.name) == (9, tmp_path.name)


def test_ranks_are_in_the_names(tmp_path: Path) -> None:
    for rank in range(11):
        for step in (2, 10):
            save(tmp_path / f"g_r{rank}_gradients_iter_{step}.npy", [100.0 * step + rank])
    read = npy.read(tmp_path)
    assert (len(read), read.world_size) == (2, 11)
    assert [[read.gradient(s, r).item() for r in range(11)] for s in range(2)] == [
        [100.0 * step + rank for rank in range(11)] for step in (2, 10)
    ]


def test_names_without_numbers_count_from_zero(tmp_path: Path) -> None:
    for name in ("late", "early"):
        save(tmp_path / f"{name}.npy", [1.0])
    assert [npy.read(tmp_path).number(i) for i in range(2)] == [0, 1]


class Harmful:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a .npy file was unpickled",)


def save(path: Path, values: object, dtype: object = numpy.float32) -> None:
    numpy.save(path, numpy.array(values, dtype), allow_pickle=True)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("values", "dtype", "fault"),
    [
        ([Harmful()], object, "has Python objects, which are never unpickled"),
        ([(1, Harmful())], [("a", float), ("b", object)], "has Python objects, which are never unpickled"),
        ([1, 2], int, "has values of the type int64"),
        ([1, 2], complex, "has values of the type complex128"),
        ([[1.0, 2.0]], float, "has the shape (1, 2)"),
        (1.0, float, "has the shape ()"),
        ([], float, "has the shape (0,)"),
        ([1.0, numpy.nan], float, "has values that are not finite in float32"),
        ([1.0, 1e300], float, "has values that are not finite in float32"),
    ],
)
def test_an_array_that_is_not_a_finite_vector_is_refused_in_one_line(
    tmp_path: Path, values: object, dtype: object, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.npy"
    save(path, values, dtype)
    for source in (path, tmp_path):
        assert main(["bench", "compress", "--mib", "--traces", str(source)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        assert fault in line


def test_a_folder_whose_files_do_not_fit_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(fault: str) -> None:
        assert main(["bench", "density", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert fault in line

    refused("is a folder with neither a run nor .npy files")
    save(tmp_path / "a_r0_1.npy", [1.0])
    save(tmp_path / "a_r0_2.npy", [1.0, 2.0])
    refused("a_r0_1.npy has 1 elements and a_r0_2.npy has 2")
    save(tmp_path / "a_r0_2.npy", [2.0])
    save(tmp_path / "a_r1_2.npy", [2.0])
    refused("its ranks have different steps (2 like a_r0_1.npy, 1 like a_r1_2.npy)")
    save(tmp_path / "a_r1_1.npy", [1.0])
    refused("has 2 steps: 60 or more are needed")
    with pytest.raises(ValueError, match=r"there is no file .*absent\.npy"):
        npy.read(tmp_path / "absent.npy")


def test_the_controllers_run_on_a_folder_of_vectors_as_on_a_trace(tmp_path: Path) -> None:
    source = [*DIGITS, "--world-size", "2", "--steps", "60", "--elements", "200"]
    assert main(["bench", "record", *source, "--out", str(tmp_path / "grads"), "--format", "npy"]) == 0
    asked = ["--densities", "0.1", "--rules", "quantile", "--output"]
    assert main(["bench", "density", str(tmp_path / "grads"), *asked, str(tmp_path / "out")]) == 0
    assert "\n| grads, W = 2 | 100% |\n" in (tmp_path / "out" / "density.md").read_text()
    (timed,) = inputs([], [tmp_path / "grads"], 40, 2, 0, torch.device("cpu"))
    plain = npy.read(tmp_path / "grads")
    assert timed.name == "grads, step 40"
    for step, seen_N in zip((38, 39, 40), [*timed.before, timed.gradient_N], strict=True):
        assert torch.equal(seen_N, plain.gradient(step, 0))


def test_vectors_are_not_written_beside_others_nor_as_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "old.npy", [1.0])
    for out, more, fault in (
        (tmp_path, ["--format", "npy"], "the folder has .npy files; give a folder without any"),
        (tmp_path / "old.npy", ["--format", "npy"], "a file; --format npy writes into a folder"),
        (tmp_path / "new.npy", [], "add --format npy and give a folder"),
    ):
        assert main(["bench", "record", *DIGITS, "--steps", "1", *more, "--out", str(out)]) == 2
        assert fault in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.npy"]


@settings(max_examples=examples(40), deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_in_one_line(seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "g.npy")
        save(path, [0.5, -1.0, 2.0])
        how = damage(path, draw)
        fault = ""
        try:
            assert npy.read(path).gradient(0, 0).dtype == torch.float32, how
        except ValueError as error:
            fault = str(error)
        assert fault == "" or ("\n" not in fault and str(path) in fault), how


def test_a_trace_knows_the_layers_of_the_elements_it_kept(tmp_path: Path) -> None:
    for elements in (500, 10**6):
        out = tmp_path / "trace.pt"
        size = ["--steps", "1", "--elements", str(elements), "--out", str(out)]
        assert main(["bench", "record", *DIGITS, *size]) == 0
        kept = trace.load(out)
        assert sum(layer.numel for layer in kept.layers) == kept.numel
        at_N = trace.sample(kept.numel, elements)
        start = 0
        for layer in kept.layers:
            positions = at_N[layer.start : layer.stop]
            inside = (at_N >= start) & (at_N < start + layer.numel)
            assert torch.equal(positions, at_N[inside]), layer
            start += layer.numel


def test_a_trace_of_an_earlier_version_has_no_layers(tmp_path: Path) -> None:
    out = tmp_path / "trace.pt"
    assert main(["bench", "record", *DIGITS, "--steps", "1", "--out", str(out)]) == 0
    content = torch.load(out, weights_only=True)
    del content["sizes"]
    torch.save(content, out)
    assert trace.load(out).layers == []
    for wrong in ([("w", 1)], [("w", True)], ["w"], [["w", 55210]]):
        torch.save({**content, "sizes": wrong}, out)
        with pytest.raises(ValueError, match="its parameters do not have|a size is not a name"):
            trace.load(out)
