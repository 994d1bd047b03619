"""Tests of LIBSVM's format, of vectors with two labels, and of the optimum of logistic regression."""

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sage.cli.main import main
from sage.data.dataset import Dataset
from sage.data.fetch import DataError
from sage.data.libsvm import read_libsvm
from sage.data.logistic import minimum
from sage.data.vectors import Vectors
from sage.datasets.breast_cancer import BreastCancer
from sage.datasets.libsvm import LibSVM


def write(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "libsvm").mkdir(exist_ok=True)
    path = folder / "libsvm" / name
    path.write_text(text)
    return path


def vectors(num: int = 50, **options: Any) -> Vectors:
    generator = np.random.default_rng(0)
    x_N3 = generator.normal(size=(num, 3)) * [1, 10, 0] + [5, 0, 2]
    label_N = (x_N3[:, 0] + generator.normal(size=num) > 5).astype(float)
    return Vectors(x_N3, label_N, checksums={}, source="made up", **options)


# The format.


def test_a_file_is_read_as_a_dense_matrix(tmp_path: Path) -> None:
    path = write(tmp_path, "+1 1:0.5 4:-2e1\n\n# only a comment\n-1\n1 2:3 # a comment\n")
    x_NF, y_N = read_libsvm(path)
    assert x_NF.tolist() == [[0.5, 0, 0, -20], [0, 0, 0, 0], [0, 3, 0, 0]]
    assert y_N.tolist() == [1, -1, 1]
    assert read_libsvm(path, num_features=6)[0].shape == (3, 6)
    packed = path.with_name("mine.bz2")
    packed.write_bytes(bz2.compress(path.read_bytes()))
    assert (read_libsvm(packed)[0] == x_NF).all()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 2", "'2' is not a pair INDEX:VALUE"),
        ("1 2:", "'2:' is not a pair"),
        ("1 2:1:1", "'2:1:1' is not a pair"),
        ("1 -2:1", "'-2:1' is not a pair"),
        ("1:2 3:1", "'1:2' is not a label"),
        ("x 1:1", "'x' has no number"),
        ("1 1:y", "'1:y' has no number"),
        ("1 1:nan", "a number is not finite"),
        ("1 0:1", "not in increasing order from 1 on"),
        ("1 2:1 2:1", "not in increasing order from 1 on"),
        ("1 3:1 2:1", "not in increasing order from 1 on"),
        ("1 5:1", "its index 5 is too large: there are 4 features"),
        ("\udcff\udcfe", r"'.*' has no number"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, "")
    path.write_bytes(f"1 1:1\n-1 2:1\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"mine, line 3: .*{says}.*; a line is LABEL INDEX:VALUE") as caught:
        read_libsvm(path, num_features=4)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mine has no samples"):
        read_libsvm(write(tmp_path, "\n# nothing\n"))
    with pytest.raises(DataError, match="3 samples of 2,147,483,647 features; at most"):
        read_libsvm(write(tmp_path, "1 2147483647:1\n1 1:1\n1 1:1\n"))
    path = write(tmp_path, "1 1:1\n", "mine.bz2")
    with pytest.raises(DataError, match="mine.bz2 is damaged"):
        read_libsvm(path)


# The data sets.


def test_a_missing_or_truncated_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"libsvm/w8a is missing: run `sage data prepare libsvm --name w8a`"):
        LibSVM(tmp_path, name="w8a")
    with pytest.raises(DataError, match=r"libsvm/mine is missing: copy it there"):
        LibSVM(tmp_path, name="mine")
    with pytest.raises(ValueError, match="name is '../a9a': give one of a9a, w8a"):
        LibSVM(tmp_path, name="../a9a")
    write(tmp_path, "1 1:1\n-1 2:1\n", "a9a")
    with pytest.raises(DataError, match="has 2 samples, and a9a has 32,561: delete the file and run"):
        LibSVM(tmp_path)
    write(tmp_path, "1 1:1\n-1 2:x\n", "a9a")
    with pytest.raises(DataError, match="a9a, line 2: .*; delete the file and run `sage data prepare libsvm"):
        LibSVM(tmp_path)
    write(tmp_path, "1 1:1\n1 2:1\n")
    with pytest.raises(DataError, match="has 1 different labels; logistic regression needs 2"):
        LibSVM(tmp_path, name="mine")


@pytest.mark.parametrize(
    ("name", "shape", "positive", "optimum"),
    [
        ("a9a", (32_561, 123), 7_841, 0.323379582),
        ("w8a", (49_749, 300), 1_479, 0.126180687),
        ("mushrooms", (8_124, 112), 3_916, 0.014485866),
    ],
)
def test_the_data_sets_of_libsvms_page_have_their_sizes(
    shared_data: Path, name: str, shape: tuple[int, int], positive: int, optimum: float
) -> None:
    data = LibSVM(shared_data, name=name)
    assert data.x_NF.shape == shape
    assert int((data.y_N == 1).sum()) == positive
    assert set(data.y_N.tolist()) == {-1.0, 1.0}
    assert data.facts["optimum"] == pytest.approx(optimum, abs=1e-9)
    assert list(data.checksums) == [name]


def test_breast_cancer_is_that_of_scikit_learn() -> None:
    from sklearn.datasets import load_breast_cancer

    data = BreastCancer(Path("unused"), scaling="none", bias=False)
    x_NF, y_N = load_breast_cancer(return_X_y=True)
    assert np.array_equal(data.x_NF.numpy(), x_NF.astype(np.float32))
    assert np.array_equal(data.y_N.numpy(), np.where(y_N == 1, 1, -1))


def test_sage_data_prepare_checks_a_file_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "1 1:1\n-1 2:x\n")
    assert main(["data", "prepare", "libsvm", str(tmp_path), "--name", "mine"]) == 2
    error = capsys.readouterr().err
    assert "mine, line 2: '2:x' has no number" in error
    assert error.count("\n") == 1
    write(tmp_path, "1 1:1\n-1 2:1\n")
    assert main(["data", "prepare", "libsvm", str(tmp_path), "--name", "mine"]) == 0


# Vectors.


def test_scaling_and_bias_are_as_documented() -> None:
    plain, largest, standard = (vectors(scaling=scaling).x_NF for scaling in ("none", "max-abs", "standard"))
    assert largest.abs().amax(0).tolist() == [1, 1, 1]
    torch.testing.assert_close(largest * plain.abs().amax(0), plain)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    # A constant feature is not divided by 0.
    torch.testing.assert_close(standard.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))
    assert vectors(bias=True).x_NF[:, 3].tolist() == [1.0] * 50


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_shares_of_the_ranks_are_disjoint_and_evaluations_cover_all_samples(world_size: int) -> None:
    data: Dataset = vectors()
    given: dict[str, Any] = {"world_size": world_size, "batch_size": 4}

    def train(rank: int, start: int = 0) -> list[torch.Tensor]:
        return [x_BF for x_BF, _ in data.train_batches(epoch=1, rank=rank, seed=0, start=start, **given)]

    steps = data.num_steps(**given)
    trained = torch.cat([torch.cat(train(rank)) for rank in range(world_size)])
    assert len(trained) == len(trained.unique(dim=0)) == steps * world_size * 4
    assert torch.equal(torch.cat(train(0, start=2)), torch.cat(train(0)[2:]))
    shares = [batch for rank in range(world_size) for batch in data.test_batches(rank=rank, **given)]
    assert torch.equal(torch.cat([x_BF for x_BF, _ in shares]), vectors().x_NF)
    assert torch.equal(torch.cat([y_B for _, y_B in shares]), vectors().y_N)


def test_the_optimum_is_that_of_the_samples_that_are_used() -> None:
    few = vectors(limit_train=20)
    assert few.facts == {
        "num_features": 3,
        "l2": 1 / 20,
        "optimum": minimum(few.x_NF.numpy(), few.y_N.numpy(), 1 / 20),
    }
    with pytest.raises(ValueError, match="limit_train is 51: give 1 to 50 samples"):
        vectors(limit_train=51)


# The optimum.


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("scaling", ["max-abs", "standard"])
def test_the_minimum_is_that_of_scikit_learn(l2: float, scaling: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    data = BreastCancer(Path("unused"), l2=l2, scaling=scaling, bias=False)
    x_NF, y_N = data.x_NF.double().numpy(), data.y_N.double().numpy()
    solver = LogisticRegression(
        C=1 / (l2 * len(y_N)), fit_intercept=False, solver="newton-cholesky", tol=1e-8, max_iter=1000
    ).fit(x_NF, y_N)
    w_F = solver.coef_[0]
    theirs = np.logaddexp(0, -y_N * (x_NF @ w_F)).mean() + l2 / 2 * w_F @ w_F
    assert -1e-12 < theirs - minimum(x_NF, y_N, l2) < 1e-10


def test_no_weights_are_below_the_minimum() -> None:
    data = vectors(scaling="standard")
    x_NF, y_N, found = data.x_NF.double(), data.y_N.double(), data.facts["optimum"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        w_F = torch.randn(3, generator=generator, dtype=torch.float64)
        value = torch.nn.functional.softplus(-y_N * (x_NF @ w_F)).mean() + data.l2 / 2 * w_F.square().sum()
        assert float(value) > found
