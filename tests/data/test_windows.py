"""Tests of windows of a text: their targets, the shares of ranks, resumption, and the three data sets."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sage.data import token_file
from sage.data.fetch import DataError
from sage.data.windows import Sampling, Windows
from sage.datasets.tiny_shakespeare import TinyShakespeare
from sage.datasets.token_bins import TokenBins
from sage.datasets.topics import Topics
from sage.datasets.topics_bytes import TopicsBytes

BOTH: tuple[Sampling, ...] = ("random", "strided")


def numbered(
    windows: Sampling = "strided",
    num_train: int = 203,
    num_test: int = 50,
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> Windows:
    """Make streams whose tokens are their positions; those of the test stream begin at a thousand."""
    return Windows(
        np.arange(num_train, dtype=np.uint16),
        np.arange(1000, 1000 + num_test, dtype=np.uint16),
        vocab_size=2000,
        block_size=7,
        windows=windows,
        checksums={},
        character_level=True,
        limit_train=limit_train,
        limit_test=limit_test,
    )


def epoch(data: Windows, rank: int, world_size: int, batch_size: int = 4, **more: Any) -> list[Tensor]:
    """The tokens of this rank's batches, after a check of their targets."""
    of = {"epoch": 1, "seed": 5} | more
    batches = list(data.train_batches(rank=rank, world_size=world_size, batch_size=batch_size, **of))
    for tokens_BT, targets_BT in batches:
        assert tokens_BT.dtype == targets_BT.dtype == torch.int64
        assert tokens_BT.shape == (batch_size, 7)
        assert targets_BT.equal(tokens_BT + 1)
        assert tokens_BT.equal(tokens_BT[:, :1] + torch.arange(7))
    return [tokens_BT for tokens_BT, _ in batches]


@pytest.mark.parametrize("windows", BOTH)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_has_as_many_batches_and_a_step_is_the_same_for_any_number_of_ranks(
    windows: Sampling, world_size: int
) -> None:
    data = numbered(windows)
    shares = [epoch(data, rank, world_size, 4 // world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {data.num_steps(batch_size=4, world_size=1)} == {7}
    assert all(torch.cat(step).equal(whole) for *step, whole in zip(*shares, epoch(data, 0, 1), strict=True))


@pytest.mark.parametrize("seed", range(9))
def test_strided_windows_do_not_overlap_and_are_in_another_order_in_each_epoch(seed: int) -> None:
    first, second = (torch.cat(epoch(numbered(), 0, 1, seed=seed, epoch=number)) for number in (0, 1))
    for tokens_NT in (first, second):
        assert len(tokens_NT.unique()) == tokens_NT.numel() == 28 * 7
    assert not first.equal(second)


def test_random_windows_start_at_any_token_and_differ_between_steps_epochs_and_seeds() -> None:
    data = numbered("random", num_train=15)
    starts = {
        tuple(tokens_BT[:, 0].tolist())
        for seed in range(9)
        for number in range(9)
        for tokens_BT in epoch(data, 0, 1, 1, epoch=number, seed=seed)
    }
    assert starts == {(start,) for start in range(8)}
    whole = numbered("random")
    orders = [torch.cat(epoch(whole, 0, 1, **of)).tolist() for of in ({}, {"epoch": 2}, {"seed": 6})]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    first, second, *_ = epoch(whole, 0, 1)
    assert not first.equal(second)


@pytest.mark.parametrize("windows", BOTH)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_epoch_equals_the_uninterrupted_one(windows: Sampling, start: int) -> None:
    whole, rest = epoch(numbered(windows), 1, 2), epoch(numbered(windows), 1, 2, start=start)
    assert len(whole) == 3
    assert len(rest) == 3 - start
    assert all(map(torch.equal, whole[start:], rest))


@pytest.mark.parametrize("world_size", [1, 3, 9])
def test_the_ranks_shares_of_the_test_windows_are_disjoint_and_predict_every_token_but_the_first(
    world_size: int,
) -> None:
    data = numbered()
    shares = [
        list(data.test_batches(rank=rank, world_size=world_size, batch_size=2)) for rank in range(world_size)
    ]
    assert all(len(tokens_BT) <= 2 for share in shares for tokens_BT, _ in share)
    targets = torch.cat([targets_BT.flatten() for share in shares for _, targets_BT in share])
    assert targets.sort().values.equal(torch.arange(1001, 1050))


def test_limits_keep_the_first_tokens_and_too_long_windows_are_refused() -> None:
    data = numbered(limit_train=70, limit_test=8)
    assert max(int(tokens_BT.max()) for tokens_BT in epoch(data, 0, 1)) < 70
    assert data.num_windows == 9
    ((tokens_BT, _),) = data.test_batches(rank=0, world_size=1, batch_size=9)
    assert tokens_BT.tolist() == [list(range(1000, 1007))]
    assert data.facts == {"vocab_size": 2000, "block_size": 7, "character_level": 1}
    for train, test in ((13, None), (None, 7)):
        with pytest.raises(ValueError, match=r"^block_size is 7, but there are .* use at most 6$"):
            numbered(limit_train=train, limit_test=test)
    with pytest.raises(ValueError, match="limit_test is 51: give 1 to 50 tokens"):
        numbered(limit_test=51)


def test_tiny_shakespeare_has_nanogpts_characters_and_split(shared_data: Path) -> None:
    if not (shared_data / "tinyshakespeare").is_dir():
        pytest.skip(f"no tinyshakespeare in {shared_data}")
    data = TinyShakespeare(shared_data)
    assert data.facts == {"vocab_size": 65, "block_size": 64, "character_level": 1}
    assert (len(data.train_N), len(data.test_N)) == (1_003_854, 111_540)
    assert data.vocabulary[:4] == ["\n", " ", "!", "$"]
    assert "".join(data.vocabulary[token] for token in data.train_N[:13].tolist()) == "First Citizen"
    assert data.num_steps(batch_size=6, world_size=2) == 1307


def test_tiny_shakespeare_is_fetched_and_a_damaged_or_missing_file_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"input.txt is missing: run `sage data prepare tiny_shakespeare`"):
        TinyShakespeare(tmp_path)
    text = b"to be, or not to be? " * 20
    (tmp_path / "source.txt").write_bytes(text)
    monkeypatch.setattr(TinyShakespeare, "urls", [(tmp_path / "source.txt").as_uri()])
    monkeypatch.setattr(TinyShakespeare, "sha256", sha256(text).hexdigest())
    TinyShakespeare.prepare(tmp_path)
    data = TinyShakespeare(tmp_path, block_size=8)
    assert data.vocabulary == sorted(set(text.decode()))
    assert data.checksums == {"input.txt": sha256(text).hexdigest()}
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(text[:-1])
    with pytest.raises(DataError, match=r"input.txt is damaged, its sha256 is"):
        TinyShakespeare(tmp_path)


def test_the_bytes_of_the_help_topics_are_those_of_its_words(tmp_path: Path) -> None:
    data, words = TopicsBytes(tmp_path), Topics(tmp_path)
    assert data.facts == {"vocab_size": 256, "block_size": 64, "character_level": 1}
    assert data.checksums == words.checksums
    assert len(data.train_N) + len(data.test_N) > 400_000
    train, test, valid = (
        bytes(tokens_N.tolist()).decode()
        for tokens_N in (data.train_N, data.test_N, TopicsBytes(tmp_path, evaluate_on="valid").test_N)
    )
    assert "statement" in train
    assert len({train, test, valid}) == 3


def write_bins(folder: Path, train: list[int], val: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tokens in (("train.bin", train), ("val.bin", val)):
        np.array(tokens, dtype="<u2").tofile(folder / name)


def test_token_bins_are_mapped_into_memory_and_summed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bins(tmp_path / "mine", list(range(100)), list(range(100, 150)))
    TokenBins.prepare(tmp_path, folder="mine", vocabulary=150)
    monkeypatch.setattr(token_file, "hashlib", _OnlyForKeys())
    data = TokenBins(tmp_path, folder="mine", vocabulary=150, block_size=7)
    assert isinstance(data.train_N, np.memmap)
    assert data.facts == {"vocab_size": 150, "block_size": 7}
    assert len(epoch(data, 0, 1)) == 3
    monkeypatch.undo()
    for name in ("train.bin", "val.bin"):
        assert data.checksums[name] == sha256((tmp_path / "mine" / name).read_bytes()).hexdigest()
    write_bins(tmp_path / "mine", [7] * 101, [8] * 50)
    again = TokenBins(tmp_path, folder="mine", vocabulary=9, block_size=7)
    assert again.checksums["train.bin"] != data.checksums["train.bin"]


class _OnlyForKeys:
    """Hashes the names of cached summaries, and no file, which is hashed in parts."""

    @staticmethod
    def sha256(content: bytes) -> Any:
        return sha256(content)


@pytest.mark.parametrize(
    ("train", "val", "fault"),
    [
        (
            None,
            b"\0\0",
            r"train.bin is missing: write it with prepare.py of nanoGPT's .* or set --data.folder",
        ),
        (b"\0\0\0", b"\0\0", r"train.bin has 3 bytes; expected is 2 bytes for each token, at least one: "),
        (b"\0\0", b"", r"val.bin has 0 bytes; expected is 2 bytes for each token, at least one: "),
        (
            b"\0\0\x2c\x01",
            b"\0\0",
            r"has the token 300, but the vocabulary has 300 words: .* to at least 301",
        ),
    ],
)
def test_a_missing_or_wrong_token_bin_is_a_one_line_error(
    tmp_path: Path, train: bytes | None, val: bytes, fault: str
) -> None:
    (tmp_path / "openwebtext").mkdir()
    for name, content in (("train.bin", train), ("val.bin", val)):
        if content is not None:
            (tmp_path / "openwebtext" / name).write_bytes(content)
    with pytest.raises(DataError, match=fault) as caught:
        TokenBins(tmp_path, vocabulary=300)
    assert "\n" not in str(caught.value)


def test_token_bins_in_a_read_only_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    write_bins(root / "openwebtext", list(range(30)), list(range(10)))
    root.chmod(0o555)
    TokenBins(root, block_size=7)
    assert [path.name for path in root.iterdir()] == ["openwebtext"]
    assert len(list((tmp_path / "cache" / "sage").glob("*.json"))) == 2
