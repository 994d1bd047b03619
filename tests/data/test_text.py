"""Tests that the vocabulary is that of the training split, and that every rank has contiguous rows."""

import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sage.data.text
from sage.data.corpus import Corpus
from sage.data.dataset import Dataset
from sage.data.fetch import DataError
from sage.data.text import Split, Tokens, encode, text_field, tokenize
from sage.datasets.ptb import PTB
from sage.datasets.topics import Topics
from sage.datasets.wikitext2 import WikiText2

TEXTS = {"train": "a b a\n c\n", "valid": "b\n", "test": "a d\n"}

PTB_TEXTS = {"ptb.train.txt": b" a b\n a\n", "ptb.valid.txt": b" a\n b\n", "ptb.test.txt": b" c\n a\n"}
WIKI_TEXTS = {
    "wiki.train.tokens": b" \n = A = \n",
    "wiki.valid.tokens": b" b \n",
    "wiki.test.tokens": b" a \n",
}


def numbered(
    num_train: int = 200,
    num_test: int = 47,
    evaluate_on: Split = "test",
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> Tokens:
    """Make streams whose tokens are their positions; those of the test split begin at a thousand."""
    streams = {"train": torch.arange(num_train), "valid": torch.arange(1000, 1020)}
    streams["test"] = torch.arange(2000, 2000 + num_test)
    return Tokens(
        Corpus(vocabulary=["x"] * 3000, streams={name: at_N.int() for name, at_N in streams.items()}),
        checksums={},
        bptt=7,
        eval_batch_size=4,
        evaluate_on=evaluate_on,
        limit_train=limit_train,
        limit_test=limit_test,
    )


def epoch(data: Dataset, rank: int, world_size: int, start: int = 0) -> list[tuple[Tensor, ...]]:
    batches = data.train_batches(epoch=1, rank=rank, world_size=world_size, batch_size=3, seed=5, start=start)
    return list(batches)


def evaluated(data: Dataset, rank: int, world_size: int) -> list[tuple[Tensor, ...]]:
    return list(data.test_batches(rank=rank, world_size=world_size, batch_size=99))


def joined(batches: list[tuple[Tensor, ...]], of: int) -> Tensor:
    """Put the batches' tokens (0) or targets (1) back into rows."""
    return torch.cat([batch[of] for batch in batches], dim=1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rows_concatenated_over_batches_and_ranks_are_the_stream(world_size: int) -> None:
    shares = [epoch(numbered(), rank, world_size) for rank in range(world_size)]
    tokens_RT = torch.cat([joined(batches, 0) for batches in shares])
    targets_RT = torch.cat([joined(batches, 1) for batches in shares])
    length = 200 // (3 * world_size)
    rows_RL = torch.arange(length * 3 * world_size).view(-1, length)
    assert tokens_RT.dtype == targets_RT.dtype == torch.int64
    assert tokens_RT.equal(rows_RL[:, :-1])
    assert targets_RT.equal(rows_RL[:, 1:])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_has_as_many_batches_of_bptt_tokens_and_a_shorter_last_one(world_size: int) -> None:
    shares = [epoch(numbered(), rank, world_size) for rank in range(world_size)]
    (lengths,) = {tuple(tokens_BT.shape[1] for tokens_BT, _ in batches) for batches in shares}
    assert len(lengths) == numbered().num_steps(batch_size=3, world_size=world_size)
    assert set(lengths[:-1]) == {7}
    assert 1 <= lengths[-1] <= 7


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_a_resumed_epoch_equals_the_uninterrupted_one(start: int) -> None:
    whole, rest = epoch(numbered(), 1, 2), epoch(numbered(), 1, 2, start)
    assert len(whole) == 5
    assert len(rest) == 5 - start
    for left, right in zip(whole[start:], rest, strict=True):
        assert all(map(torch.equal, left, right))


@pytest.mark.parametrize("world_size", [1, 3, 6])
def test_test_rows_are_divided_among_ranks_and_predict_all_but_their_first_tokens(world_size: int) -> None:
    shares = [evaluated(numbered(), rank, world_size) for rank in range(world_size)]
    assert [bool(batches) for batches in shares] == [rank < 4 for rank in range(world_size)]
    targets = sorted(at for batches in shares if batches for at in joined(batches, 1).flatten().tolist())
    # 47 tokens are 4 rows of 11, and 3 are left over.
    assert targets == [at for at in range(2000, 2044) if at not in (2000, 2011, 2022, 2033)]


def test_the_chosen_split_is_evaluated() -> None:
    assert joined(evaluated(numbered(evaluate_on="valid"), 0, 1), 0).min() == 1000


def test_limits_keep_the_first_tokens_and_the_whole_vocabulary() -> None:
    data = numbered(limit_train=60, limit_test=8)
    assert joined(epoch(data, 0, 1), 1).max() == 59
    assert joined(evaluated(data, 0, 1), 1).max() == 2007
    assert data.facts == {"vocab_size": 3000}
    with pytest.raises(ValueError, match="limit_train is 201: give 1 to 200 tokens"):
        numbered(limit_train=201)


def test_too_few_tokens_for_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="200 tokens do not fill 102 rows .* at most 100 rows"):
        numbered().num_steps(batch_size=3, world_size=34)


def test_the_vocabulary_is_the_training_splits(tmp_path: Path) -> None:
    corpus = encode(TEXTS, tmp_path, tokenizer="split")
    assert sorted(corpus.vocabulary) == ["<eos>", "<unk>", "a", "b", "c"]
    words = {
        split: [corpus.vocabulary[token] for token in stream.tolist()]
        for split, stream in corpus.streams.items()
    }
    assert words["train"] == ["a", "b", "a", "<eos>", "c", "<eos>"]
    assert words["test"] == ["a", "<unk>", "<eos>"]
    assert "c" not in encode(TEXTS, tmp_path, tokenizer="split", min_freq=2).vocabulary


def test_a_corpus_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(TEXTS, tmp_path, tokenizer="split")
    with monkeypatch.context() as patch:
        patch.setattr(sage.data.text, "text_field", None)
        again = encode(TEXTS, tmp_path, tokenizer="split")
    assert again.vocabulary == first.vocabulary
    assert all(again.streams[split].equal(first.streams[split]) for split in TEXTS)
    assert "e" in encode({**TEXTS, "train": "e\n"}, tmp_path, tokenizer="split").vocabulary


def test_ranks_that_start_at_the_same_time_read_the_same_corpus(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as ranks:
        corpora = list(ranks.map(lambda _: encode(TEXTS, tmp_path, tokenizer="split"), range(8)))
    assert len({tuple(corpus.vocabulary) for corpus in corpora}) == 1
    assert len([path for path in (tmp_path / ".cache").iterdir() if path.is_dir()]) == 1


def test_a_read_only_folder_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir(mode=0o555)
    encode(TEXTS, root, tokenizer="split")
    assert not list(root.iterdir())
    assert len([path for path in (tmp_path / "cache" / "sage").iterdir() if path.is_dir()]) == 1


def test_spacy_does_not_split_special_tokens() -> None:
    tokens = tokenize(text_field("spacy"), "<bos> The <unk> doesn't <eos>\n")
    assert tokens == ["<bos>", "the", "<unk>", "does", "n't", "<eos>", "<eos>"]


@pytest.mark.parametrize("kind", [PTB, WikiText2])
def test_a_damaged_or_missing_file_is_refused(kind: type[PTB | WikiText2], tmp_path: Path) -> None:
    (name, *_), command = kind.sums, kind.__name__.lower()
    with pytest.raises(DataError, match=f"{name} is missing: run `sage data prepare {command}`"):
        kind(tmp_path)
    (tmp_path / name).write_text("something else")
    with pytest.raises(DataError, match=f"{name} is damaged, .*`sage data prepare {command}`"):
        kind(tmp_path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the folder `mirror` on the loopback."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_ptb_is_fetched_file_by_file(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PTB_TEXTS.items():
        (tmp_path / "mirror" / name).write_bytes(text)
    monkeypatch.setattr(PTB, "urls", [f"{mirror}gone/", mirror])
    monkeypatch.setattr(PTB, "sums", {name: sha256(text).hexdigest() for name, text in PTB_TEXTS.items()})
    PTB.prepare(tmp_path / "data")
    assert (tmp_path / "data" / "ptb" / "ptb.test.txt").read_bytes() == PTB_TEXTS["ptb.test.txt"]

    monkeypatch.setattr(PTB, "urls", [])
    PTB.prepare(tmp_path / "data")
    data = PTB(tmp_path / "data", eval_batch_size=1)
    assert data.facts == {"vocab_size": 4}
    assert data.checksums == PTB.sums
    assert [data.vocabulary[token] for token in data.test_N] == ["<unk>", "<eos>", "a", "<eos>"]


def test_wikitext2_is_fetched_in_an_archive(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "mirror" / "wiki.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, text in WIKI_TEXTS.items():
            zipped.writestr(f"wikitext-2/{name}", text)
    monkeypatch.setattr(WikiText2, "urls", [f"{mirror}wiki.zip"])
    monkeypatch.setattr(WikiText2, "archive_sum", sha256(archive.read_bytes()).hexdigest())
    sums = {name: sha256(text).hexdigest() for name, text in WIKI_TEXTS.items()}
    monkeypatch.setattr(WikiText2, "sums", sums)
    WikiText2.prepare(tmp_path / "data")
    data = WikiText2(tmp_path / "data", eval_batch_size=1)
    # spaCy makes a token of the space that begins a line, and torchtext counts <pad>.
    assert sorted(data.vocabulary) == [" ", "<eos>", "<pad>", "<unk>", "=", "a"]


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> Path:
    """Give the real data in a folder whose cache is the test's own."""
    for name in ("ptb", "wikitext-2"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no {name} in {shared_data}")
        (tmp_path / name).symlink_to(shared_data / name)
    return tmp_path


def test_ptb_has_its_well_known_sizes(real: Path) -> None:
    test, valid = PTB(real), PTB(real, evaluate_on="valid")
    assert test.facts == {"vocab_size": 10_000}
    assert (len(test.train_N), len(valid.test_N), len(test.test_N)) == (929_589, 73_760, 82_430)


def test_wikitext2_split_at_white_space_has_its_well_known_sizes(real: Path) -> None:
    test, valid = (WikiText2(real, tokenizer="split", evaluate_on=split) for split in ("test", "valid"))
    assert test.facts == {"vocab_size": 28_913}
    assert (len(test.train_N), len(valid.test_N), len(test.test_N)) == (2_088_628, 217_646, 245_569)


@pytest.mark.thorough  # takes 20 seconds; the other tests tokenise short texts by spaCy
def test_wikitext2_by_spacy_has_the_vocabulary_of_the_published_model(real: Path) -> None:
    assert WikiText2(real).facts == {"vocab_size": 28_869}


def test_the_help_topics_are_part_of_python(tmp_path: Path) -> None:
    data = Topics(tmp_path)
    assert 2000 < data.facts["vocab_size"] < 4000
    assert len(data.train_N) > 60_000
    assert len(data.test_N) > 2_000
    assert (data.test_N == data.vocabulary.index("<unk>")).float().mean() < 0.1
    assert len(data.checksums["pydoc_data/topics.py"]) == 64
