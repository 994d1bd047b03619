"""Tests of AN4's reader: four file formats, lists and manifests, damaged files, and the download."""

import hashlib
import sys
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sage.cli.main import main
from sage.data.dataset import epoch_generator
from sage.data.fetch import DataError
from sage.data.sound_files import read_clip
from sage.data.speech import SYMBOLS
from sage.datasets.an4 import AN4

# S = samples of a clip

FORMATS = ("raw", "wav", "sph", "flac")
# Seconds and transcript; of the training clips one is too short and one too long.
CLIPS = {
    "train": {"fash/an1-fash-b": (1.0, "YES"), "fash/an2-fash-b": (0.9, "NO")}
    | {f"mbmg/cen{i}-mbmg-b": (1 + i / 10, f"RUBOUT {'G M E'[: 2 * i + 1]} IT'S") for i in range(3)}
    | {"mbmg/an4-mbmg-b": (15.01, "ERASE C Q Q F SEVEN")},
    "test": {"fcaw/an406-fcaw-b": (0.5, "THREE NINE"), "fcaw/an407-fcaw-b": (1.5, "B A O Z")},
}


def samples(name: str, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    generator = epoch_generator(0, 0, *name.encode())
    return torch.randint(-2000, 2000, (round(16000 * seconds),), generator=generator).numpy().astype(np.int16)


def write(path: Path, samples_S: np.ndarray[tuple[int], np.dtype[np.int16]]) -> None:
    """Write a clip in the format of the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".raw":
        path.write_bytes(samples_S.astype(">i2").tobytes())
    elif path.suffix == ".sph":
        fields = (
            *(f"sample_count -i {len(samples_S)}", "sample_n_bytes -i 2", "channel_count -i 1"),
            *("sample_byte_format -s2 01", "sample_rate -i 16000", "sample_coding -s3 pcm", "end_head"),
        )
        header = "\n".join(("NIST_1A", "   1024", *fields, ""))
        path.write_bytes(header.encode().ljust(1024) + samples_S.astype("<i2").tobytes())
    elif path.suffix == ".wav":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples_S.astype("<i2").tobytes())
    else:
        soundfile = pytest.importorskip("soundfile", reason="the extra speech is not installed")
        soundfile.write(path, samples_S, 16000, subtype="PCM_16")


def tree(root: Path, suffix: str = "raw") -> Path:
    """Write a small AN4 as upstream has it; return its folder."""
    folder = root / "an4"
    (folder / "etc").mkdir(parents=True)
    for split, clips in CLIPS.items():
        ids, lines = [], []
        for name, (seconds, text) in clips.items():
            of = "an4_clstk" if split == "train" else "an4test_clstk"
            ids.append(f"{of}/{name}")
            short = name.rpartition("/")[2]
            lines.append(f"<s> {text} </s> ({short})" if split == "train" else f"{text} ({short})")
            write(folder / "wav" / of / f"{name}.{suffix}", samples(name, seconds))
        (folder / "etc" / f"an4_{split}.fileids").write_text("\n".join(ids) + "\n")
        (folder / "etc" / f"an4_{split}.transcription").write_text("\n".join(lines) + "\n")
    return folder


def transcripts(data: AN4, split: str) -> list[str]:
    clips = {"train": data.train, "test": data.test}[split]
    return ["".join(SYMBOLS[number] for number in clip.symbols) for clip in clips]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_has_the_same_samples_transcripts_and_checksums(tmp_path: Path, suffix: str) -> None:
    tree(tmp_path, suffix)
    data = AN4(tmp_path)
    assert transcripts(data, "train") == ["YES", "RUBOUT G IT'S", "RUBOUT G M IT'S", "RUBOUT G M E IT'S"]
    assert transcripts(data, "test") == ["THREE NINE", "B A O Z"]
    expected = hashlib.sha256()
    for name, (seconds, _) in CLIPS["test"].items():
        expected.update(samples(name, seconds).astype(">i2").tobytes())
    assert data.checksums["an4-test-samples"] == expected.hexdigest()
    assert data.test[1].samples_S.numpy().tolist() == samples("fcaw/an407-fcaw-b", 1.5).tolist()
    assert data.test[0].samples_S.dtype == torch.int16
    assert data.facts == {"num_bins": 161, "num_symbols": 29}
    assert data.provenance == "6 and 2 clips that are not the whole AN4"
    assert len(AN4(tmp_path, shortest=0, longest=20).train) == 6


def test_manifests_give_the_same_clips_as_the_lists(tmp_path: Path) -> None:
    folder = tree(tmp_path, "wav")
    for split, clips in CLIPS.items():
        of = "an4_clstk" if split == "train" else "an4test_clstk"
        (folder / "txt").mkdir(exist_ok=True)
        rows = []
        for number, (name, (_, text)) in enumerate(clips.items()):
            (folder / "txt" / f"{split}-{number}.txt").write_text(text + "\n")
            rows.append(f"wav/{of}/{name}.wav,{folder}/txt/{split}-{number}.txt")
        (folder / f"{split}.csv").write_text("\n".join(rows))
    listed = AN4(tmp_path)
    data = AN4(tmp_path, train_manifest="train.csv", test_manifest="test.csv")
    assert data.checksums == listed.checksums
    with pytest.raises(ValueError, match=r"test_manifest is 'test.csv' without train_manifest: give both"):
        AN4(tmp_path, test_manifest="test.csv")
    with pytest.raises(DataError, match=r"an4/no.csv is missing: expected are lines CLIP,TEXT"):
        AN4(tmp_path, train_manifest="no.csv", test_manifest="test.csv")
    (folder / "test.csv").write_text("wav/a.wav\n")
    with pytest.raises(DataError, match=r"test.csv, line 1: 'wav/a.wav' is not CLIP,TEXT"):
        AN4(tmp_path, train_manifest="train.csv", test_manifest="test.csv")
    (folder / "test.csv").write_text("wav/a.wav,txt/none.txt\n")
    with pytest.raises(DataError, match=r"txt/none.txt is missing, the transcript of line 1 of .*test.csv"):
        AN4(tmp_path, train_manifest="train.csv", test_manifest="test.csv")


def cut(content: bytes) -> bytes:
    return content[:-500]


def cut_within_a_sample(content: bytes) -> bytes:
    return content[:-501]


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def other_sum(content: bytes) -> bytes:
    return content[:26] + bytes([content[26] ^ 1]) + content[27:]


def tiny(content: bytes) -> bytes:
    return content[:300]


def shortened(content: bytes) -> bytes:
    return content.replace(b"-s3 pcm\n", b"-s8 pcm,shor\n")


def half_rate(content: bytes) -> bytes:
    return content.replace(b"-i 16000", b"-i 8000")


@pytest.mark.parametrize(
    ("suffix", "damage", "says"),
    [
        ("raw", cut_within_a_sample, r"it has \d+ bytes of samples, which is not even"),
        ("raw", tiny, "it has 150 samples, and a clip needs 161"),
        ("wav", cut, r"it has \d+ of 24000 samples"),
        ("wav", tiny, r"it has 128 of 24000 samples"),
        ("sph", cut, r"it has \d+ of 24000 samples"),
        ("sph", tiny, "it has 0 of 24000 samples"),
        ("sph", shortened, "its sample_coding is pcm,shor, and only pcm is read"),
        ("sph", half_rate, "it has 8000 samples per second, 1 channels and 16 bits: expected is 16000"),
        ("flac", cut, ""),
        ("flac", flipped, ""),
        ("flac", other_sum, "the MD5 sum of its samples is not the one that it states"),
        ("flac", tiny, ""),
    ],
)
def test_a_damaged_clip_is_named_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    damage: Callable[[bytes], bytes],
    says: str,
) -> None:
    tree(tmp_path, suffix)
    path = tmp_path / "an4" / "wav" / "an4test_clstk" / "fcaw" / f"an407-fcaw-b.{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    message = rf"an407-fcaw-b.{suffix} is damaged or in another format: .*{says}.*: copy or convert it again$"
    with pytest.raises(DataError, match=message):
        AN4(tmp_path)
    argv = ["run", "deepspeech-an4", "--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert main([*argv, "--workers-in-process"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "an407" in line]
    assert len(error) == 1


def test_two_channels_and_other_endings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(1)
        file.setframerate(16000)
        file.writeframes(bytes(2000))
    with pytest.raises(
        DataError, match="16000 samples per second, 2 channels and 8 bits: expected is 16000, one"
    ):
        read_clip(path, 16000)
    path.rename(tmp_path / "clip.mp3")
    with pytest.raises(
        DataError, match=r"clip.mp3 has no ending of a known format: expected is .flac, .wav, .sph"
    ):
        read_clip(tmp_path / "clip.mp3", 16000)
    with pytest.raises(DataError, match=r"none.wav is missing"):
        read_clip(tmp_path / "none.wav", 16000)


def test_flac_without_soundfile_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(
        DataError, match=r"is FLAC, for which .*: pip install 'sage-bench\[speech\]', or convert"
    ):
        read_clip(tmp_path / "a.flac", 16000)


def test_lists_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"etc/an4_train.fileids is missing: run `sage data prepare an4`"):
        AN4(tmp_path)
    folder = tree(tmp_path)
    lines = folder / "etc" / "an4_test.transcription"
    text = lines.read_text()
    lines.write_text(text.replace("an407-fcaw-b", "an408-fcaw-b"))
    with pytest.raises(
        DataError, match=r"an4_test.transcription, line 2: .*not end with the id \(an407-fcaw-b\)"
    ):
        AN4(tmp_path)
    lines.write_text(text.splitlines()[0])
    with pytest.raises(DataError, match=r"an4_test.fileids has 2 lines, and .*an4_test.transcription has 1"):
        AN4(tmp_path)
    lines.write_text(text.replace("B A O Z", "123"))
    with pytest.raises(DataError, match=r"the transcript of .*an407-fcaw-b.raw, '123', has no letter"):
        AN4(tmp_path)
    lines.write_text(text)
    (folder / "wav" / "an4test_clstk" / "fcaw" / "an407-fcaw-b.raw").unlink()
    with pytest.raises(
        DataError, match=r"an407-fcaw-b is missing, with .flac, .wav, .sph, .raw: run `sage data"
    ):
        AN4(tmp_path)
    with pytest.raises(ValueError, match="none of the 6 training clips has a length between them"):
        AN4(tree(tmp_path / "again").parent, shortest=20, longest=30)


def test_prepare_downloads_unpacks_and_verifies_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "made", "sph")
    archive = tmp_path / "an4_sphere.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "an4")
    monkeypatch.setattr(AN4, "urls", (archive.as_uri(),))
    root = tmp_path / "root"
    assert main(["data", "prepare", "an4", str(root)]) == 2
    assert "root/an4 are not the whole AN4: remove it and an4_sphere.tar.gz, and" in capsys.readouterr().err
    sums = AN4(folder.parent).checksums
    monkeypatch.setattr(AN4, "samples", {split: sums[f"an4-{split}-samples"] for split in ("train", "test")})
    assert main(["data", "prepare", "an4", str(root)]) == 0
    monkeypatch.setattr(AN4, "urls", ())
    assert main(["data", "prepare", "an4", str(root)]) == 0, "complete data needs no download"
    assert not hasattr(AN4(root), "provenance")


def test_the_real_an4_is_read_whole(shared_data: Path) -> None:
    if not (shared_data / "an4").is_dir():
        pytest.skip("no an4 under SAGE_DATA_DIR")
    pytest.importorskip("soundfile", reason="the extra speech is not installed")
    data = AN4(shared_data)
    assert data.whole
    assert (len(data.train), len(data.test)) == (897, 130)
    text = transcripts(data, "test")
    assert sum(len(line.split()) for line in text) == 773
    assert sum(map(len, text)) == 2565
    for world_size, steps in ((1, 45), (2, 23), (8, 6)):
        assert data.num_steps(batch_size=20, world_size=world_size) == steps
    # The loss is finite if a clip has a frame for each symbol, and one between equal neighbours.
    for clip in (*data.train, *data.test):
        frames = len(clip.samples_S) // 160 // 2 + 1
        pairs = zip(clip.symbols, clip.symbols[1:], strict=False)
        assert frames > len(clip.symbols) + sum(a == b for a, b in pairs)
    raw = sorted((shared_data / "an4" / "raw" / "wav" / "an4test_clstk" / "fcaw").glob("*.raw"))
    for path in raw[:3]:
        flac = shared_data / "an4" / "wav" / "an4test_clstk" / "fcaw" / f"{path.stem}.flac"
        assert read_clip(path, 16000).equal(read_clip(flac, 16000))
