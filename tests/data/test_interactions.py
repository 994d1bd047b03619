"""Tests of interactions: the split, negatives, shares of ranks, candidates, and MovieLens and imports."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sage.data.dataset import Batch, data_root
from sage.data.fetch import DataError, sha256_of
from sage.data.interactions import Interactions
from sage.datasets import imports, movielens

MINIMUM = 4


def an_epoch(
    data: Interactions, *, world_size: int = 1, batch_size: int = 10, epoch: int = 0
) -> list[list[Batch]]:
    return [
        list(data.train_batches(epoch=epoch, rank=rank, world_size=world_size, batch_size=batch_size, seed=3))
        for rank in range(world_size)
    ]


def the_tests(data: Interactions, *, world_size: int = 1) -> list[Batch]:
    ranks = range(world_size)
    return [b for rank in ranks for b in data.test_batches(rank=rank, world_size=world_size, batch_size=7)]


def pairs(user: Tensor, item: Tensor) -> set[tuple[int, int]]:
    return set(zip(user.tolist(), item.tolist(), strict=True))


def whole_epoch(data: Interactions, *, epoch: int = 0) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Draw an epoch as one batch, and split its pairs into (positives, negatives)."""
    everything = data.num_steps(batch_size=1, world_size=1)
    (((user, item, label),),) = an_epoch(data, batch_size=everything, epoch=epoch)
    rows = list(zip(user.tolist(), item.tolist(), label.tolist(), strict=True))
    return [(u, i) for u, i, y in rows if y == 1], [(u, i) for u, i, y in rows if y == 0]


@pytest.fixture(scope="module")
def rows() -> list[tuple[int, int, int]]:
    """(user, item, time) with gaps in the ids, repeated pairs, ties in time, and users of few items."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> list[int]:
        return torch.randint(high, (500,), generator=generator).tolist()

    return [(3 * u * u, 2 * i, t) for u, i, t in zip(draw(40), draw(30), draw(9), strict=True)] + [
        (1, 2, 0),
        (1, 4, 0),
    ]


@pytest.fixture(scope="module")
def latest(rows: list[tuple[int, int, int]]) -> dict[int, list[int]]:
    """Each user's distinct items in the order of their last occurrence, computed plainly."""
    met: dict[int, list[int]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):  # Python sorts stably
        items = met.setdefault(user, [])
        if item in items:
            items.remove(item)
        items.append(item)
    met = {user: items for user, items in sorted(met.items()) if len(items) >= MINIMUM}
    names = sorted({item for items in met.values() for item in items})
    return {u: [names.index(item) for item in items] for u, items in enumerate(met.values())}


@pytest.fixture(scope="module")
def data(rows: list[tuple[int, int, int]]) -> Interactions:
    user, item, time = torch.tensor(rows).T
    return Interactions(user, item, time, minimum=MINIMUM, negatives=4, test_negatives=20, checksums={})


@pytest.fixture(scope="session")
def ml_100k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the real MovieLens 100K, from a data folder, the cache, or RecBole's wheel."""
    root = tmp_path_factory.mktemp("movielens")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sage"
    folders = [place / "ml-100k" for place in (data_root(), Path(__file__).parents[2] / "shared/data", cache)]
    files = (folder / name for folder in folders for name in ("u.data", "ml-100k.inter"))
    try:
        source = next((file for file in files if file.is_file()), None) or movielens.fetch_from_recbole(
            folders[-1]
        )
    except DataError:
        pytest.skip("MovieLens 100K is neither in $SAGE_DATA_DIR nor to be had from PyPI")
    (root / "ml-100k").mkdir()
    shutil.copy(source, root / "ml-100k")
    movielens.MovieLens.prepare(root, size="100k")
    return root


@pytest.fixture(scope="session", params=["imports", "movielens"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Interactions:
    if request.param == "imports":
        return imports.Imports(tmp_path_factory.getbasetemp())
    return movielens.MovieLens(request.getfixturevalue("ml_100k"), size="100k")


def test_users_with_few_distinct_items_are_left_out(data: Interactions, latest: dict[int, list[int]]) -> None:
    assert 1 < len(latest) < 41
    assert data.facts == {"num_users": len(latest), "num_items": 1 + max(map(max, latest.values()))}


def test_the_latest_item_is_held_out_and_the_rest_is_trained_on(
    data: Interactions, latest: dict[int, list[int]]
) -> None:
    assert [items[0] for _, items_UC, _ in the_tests(data) for items in items_UC.tolist()] == [
        items[-1] for items in latest.values()
    ]
    positives, negatives = whole_epoch(data)
    assert sorted(positives) == sorted((u, i) for u, items in latest.items() for i in items[:-1])
    assert len(negatives) == 4 * len(positives)


def test_a_held_out_item_is_never_trained_on(real: Interactions) -> None:
    positives, _ = whole_epoch(real)
    held_out = {pair for user_U, items_UC, _ in the_tests(real) for pair in pairs(user_U, items_UC[:, 0])}
    assert len(held_out) == real.facts["num_users"]
    assert held_out.isdisjoint(positives)


def test_a_negative_is_never_a_positive(real: Interactions) -> None:
    first, second = (whole_epoch(real, epoch=epoch) for epoch in (0, 1))
    positives = set(first[0])
    assert positives == set(second[0])
    assert positives.isdisjoint(first[1] + second[1])
    assert sorted(first[1]) != sorted(second[1])
    for user_U, items_UC, _ in the_tests(real):
        for column in range(1, items_UC.shape[1]):
            assert positives.isdisjoint(pairs(user_U, items_UC[:, column]))
        assert not (items_UC[:, 1:] == items_UC[:, :1]).any()


def test_negatives_are_uniform_over_the_items_not_trained_on() -> None:
    items = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9] + list(range(10)))  # user 0 has all items but 3 and 6
    user = torch.tensor([0] * 8 + [1] * 10)
    data = Interactions(user, items, torch.arange(18), minimum=2, negatives=900, checksums={})
    _, negatives = whole_epoch(data)
    drawn = torch.tensor([item for user, item in negatives if user == 0])
    counts = drawn.bincount(minlength=10)
    assert counts.nonzero().flatten().tolist() == [3, 6, 9]  # 9 is held out
    assert (counts[[3, 6, 9]] - 2100).abs().max() < 200  # over five standard deviations of 7 x 900 draws


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_samples_of_one_rank(data: Interactions, world_size: int) -> None:
    steps = data.num_steps(batch_size=6, world_size=world_size)
    (alone,) = an_epoch(data, batch_size=6 * world_size)
    ranks = an_epoch(data, batch_size=6, world_size=world_size)
    assert {len(batches) for batches in (alone, *ranks)} == {steps}
    for whole, *parts in zip(alone, *ranks, strict=True):
        for column, shares in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(column, torch.cat(shares))


def test_a_resumed_epoch_equals_an_uninterrupted_one(data: Interactions) -> None:
    (whole,) = an_epoch(data)
    for start in (0, 1, len(whole)):
        torch.manual_seed(start)
        rest = list(data.train_batches(epoch=0, rank=0, world_size=1, batch_size=10, seed=3, start=start))
        assert len(rest) == len(whole) - start
        assert all(
            torch.equal(a, b)
            for x, y in zip(whole[start:], rest, strict=True)
            for a, b in zip(x, y, strict=True)
        )


def test_batches_have_the_types_that_tasks_expect(data: Interactions) -> None:
    assert [column.dtype for column in an_epoch(data)[0][0]] == [torch.int64, torch.int64, torch.float32]
    assert [column.dtype for column in the_tests(data)[0]] == [torch.int64, torch.int64, torch.bool]


@pytest.mark.parametrize("world_size", [1, 3, 64])
def test_every_user_is_tested_once(data: Interactions, world_size: int) -> None:
    batches = the_tests(data, world_size=world_size)
    assert all(len(user_U) for user_U, _, _ in batches)
    tested = [user for user_U, _, _ in batches for user in user_U.tolist()]
    assert sorted(tested) == list(range(data.facts["num_users"]))


def test_the_mask_marks_repeats_and_nothing_else(real: Interactions) -> None:
    for _, items_UC, duplicate_UC in the_tests(real):
        for items, duplicate in zip(items_UC.tolist(), duplicate_UC.tolist(), strict=True):
            assert duplicate == [item in items[:column] for column, item in enumerate(items)]


def test_a_user_of_every_item_is_tested_without_other_candidates() -> None:
    user, item = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    data = Interactions(user, item, torch.arange(5), minimum=2, test_negatives=5, checksums={})
    ((_, items_UC, duplicate_UC),) = the_tests(data)
    assert items_UC.tolist() == [[2] * 6, [1] + [2] * 5]
    assert duplicate_UC.tolist() == [[False] + [True] * 5, [False] * 2 + [True] * 4]


def test_every_run_ranks_the_same_candidates(data: Interactions, rows: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(7)
    user, item, time = torch.tensor(rows).T
    again = Interactions(user, item, time, minimum=MINIMUM, negatives=1, test_negatives=20, checksums={})
    for x, y in zip(the_tests(data), the_tests(again), strict=True):
        assert torch.equal(x[1], y[1])


@pytest.mark.parametrize(
    ("option", "value"), [("minimum", 1), ("negatives", -1), ("test_negatives", 0), ("minimum", 99)]
)
def test_an_option_out_of_range_is_refused(rows: list[tuple[int, int, int]], option: str, value: int) -> None:
    user, item, time = torch.tensor(rows).T
    with pytest.raises(ValueError, match=f"{option} is {value}.* give .*at (least|most) "):
        Interactions(user, item, time, checksums={}, **{option: value})


def test_movielens_100k_is_complete(ml_100k: Path) -> None:
    data = movielens.MovieLens(ml_100k, size="100k")
    assert data.facts == {"num_users": 943, "num_items": 1682}
    assert data.num_steps(batch_size=1, world_size=1) == 5 * (100_000 - 943)
    ((name, sha256),) = data.checksums.items()
    assert name in ("ml-100k/u.data", "ml-100k/ml-100k.inter")
    assert sha256 == sha256_of(ml_100k / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.data", "196\t242\t3\t881250949\n1\t2\t5\t7\n"),
        ("ratings.dat", "196::242::3::881250949\n1::2::5::7\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n196,242,3.5,881250949\n1,2,5.0,7\n"),
        (
            "ml-100k.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n1\t2\t5\t7\n",
        ),
    ],
)
def test_every_spelling_of_a_rating_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert movielens.read_ratings(tmp_path / name).tolist() == [[196, 242, 881250949], [1, 2, 7]]


def test_the_error_for_unprepared_movielens_has_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"ratings.npz is missing: run `sage data prepare movielens --size 1m`"
    ):
        movielens.MovieLens(tmp_path, size="1m")


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    for call in (movielens.MovieLens, movielens.MovieLens.prepare):
        with pytest.raises(ValueError, match="size is '10m': give one of 100k, 1m, 20m"):
            call(tmp_path, size="10m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:9999], lambda whole: b"not a zip", lambda whole: b""]
)
def test_damaged_movielens_is_refused(
    tmp_path: Path, ml_100k: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "ml-100k" / "ratings.npz"
    path.parent.mkdir()
    path.write_bytes(damage((ml_100k / "ml-100k" / "ratings.npz").read_bytes()))
    with pytest.raises(DataError, match="ratings.npz is damaged.*sage data prepare movielens --size 100k"):
        movielens.MovieLens(tmp_path, size="100k")


@pytest.mark.parametrize(
    ("text", "message"), [("1\t2\t3\t4\n", "has 1 ratings, not 100,000"), ("1\t2\n", "is damaged")]
)
def test_incomplete_ratings_are_not_prepared(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ml-100k" / "u.data"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        movielens.MovieLens.prepare(tmp_path, size="100k")
    assert not path.with_name("ratings.npz").exists()


def test_only_the_100k_falls_back_on_the_wheel_and_reports_it(
    tmp_path: Path, ml_100k: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*args: object, **options: object) -> Path:
        raise DataError("GroupLens could not be reached")

    (source,) = (path for path in (ml_100k / "ml-100k").iterdir() if path.suffix != ".npz")
    monkeypatch.setattr(movielens, "download", unreachable)
    monkeypatch.setattr(
        movielens,
        "fetch_from_recbole",
        lambda folder: folder.mkdir() or shutil.copy(source, folder / source.name),
    )
    with caplog.at_level(logging.WARNING):
        movielens.MovieLens.prepare(tmp_path, size="100k")
    assert "GroupLens could not be reached" in caplog.text
    assert movielens.MovieLens(tmp_path, size="100k").facts["num_users"] == 943
    with pytest.raises(DataError, match="could not be reached"):
        movielens.MovieLens.prepare(tmp_path, size="20m")


def test_imports_are_plenty_and_plausible(tmp_path: Path) -> None:
    data = imports.Imports(tmp_path)
    assert data.facts["num_users"] >= 200
    assert 200 <= data.facts["num_items"] <= 1000
    every = imports.standard_library_imports()
    assert {
        ("json", "json.decoder"),
        ("asyncio.locks", "collections"),
        ("concurrent.futures.thread", "queue"),
    } <= {*every}
    assert not any(file.startswith(("test.", "site-packages")) for file, _ in every)
    assert [*data.checksums] == [*imports.Imports(tmp_path, minimum=9).checksums]


def test_imports_are_found_in_every_block_in_the_order_of_the_lines() -> None:
    source = b"""
import one, two.three
try:
    from four import x
except ImportError:
    import five
else:
    if x:
        from . import sibling, name
finally:
    def f():
        from ..aunt import y
        match y:
            case 0: import six
"""
    found = list(imports.imports_of(source, "a.b.c", {"a.b.sibling"}))
    assert found == ["one", "two.three", "four", "five", "a.b.sibling", "a.b", "a.aunt", "six"]
    assert list(imports.imports_of(b"from .d import e", "a.b", set(), is_package=True)) == ["a.b.d"]
