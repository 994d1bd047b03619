"""AN4: 948 spoken clips for training and 130 for testing, of letters, numbers and commands, from CMU."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from sage.data.clip_list import Listed, from_fileids, from_manifest
from sage.data.fetch import DataError, download, preparing, unpack
from sage.data.sound_files import read_clip
from sage.data.speech import Clip, Speech, digest, numbered, transcripts_digest
from sage.validate import Range

_RATE = 16000
_SPLITS = ("train", "test")

Seconds = Annotated[float, Range(0)]


class AN4(Speech):
    """The alphanumeric database of Carnegie Mellon University, 1991: 42 minutes for training, 6 for testing.

    From `speech.cs.cmu.edu/databases/an4`; 16 kHz, 74 speakers for training and 10 others for testing.
    The samples of a clip are the same in all its formats, and so are the recorded checksums.
    """

    urls: ClassVar[Sequence[str]] = (
        "https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz",
        "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz",
    )
    samples: ClassVar[dict[str, str]] = {
        "train": "27ae269d9336257332b612e1e7546478725eea716f3d471a266d18ddc24a4db0",
        "test": "8973647b71169a48772e9fe44b4750b0b965d5cf8022a046ffed688cc02226ed",
    }
    """The sha256 of all samples of a split, in the order of its file ids, as big-endian int16."""

    def __init__(
        self,
        root: Path,
        *,
        folder: str = "an4",
        train_manifest: str = "",
        test_manifest: str = "",
        augment: bool = True,
        shortest: Seconds = 1.0,
        longest: Seconds = 15.0,
        loaders: Annotated[int, Range(0, 256)] = 0,
        limit_train: Annotated[int | None, Range(1)] = None,
        limit_test: Annotated[int | None, Range(1)] = None,
    ) -> None:
        """Read all clips into memory: flac, wav, sph or raw.

        Args:
            folder: The folder of etc and wav, relative to the folder of the data sets.
            train_manifest: A file of lines CLIP,TEXT in the folder, in place of etc; give test_manifest too.
            test_manifest: Likewise for testing.
            augment: Mask frequencies and frames of the training clips at random (SpecAugment).
            shortest: Seconds that a training clip must have; shorter ones are not used.
            longest: Seconds that a training clip may have; longer ones are not used.
            loaders: Threads of each rank that compute the next batches; they do not change the batches.
            limit_train: Train only on this number of clips, the first ones.
            limit_test: Test only on this number of clips, the first ones.
        """
        listed = _listed(root / folder, train_manifest, test_manifest)
        clips = {split: _read(listed[split]) for split in _SPLITS}
        sums = {split: digest(clips[split]) for split in _SPLITS}
        self.whole = sums == self.samples
        if not self.whole:
            self.provenance = (
                f"{len(clips['train'])} and {len(clips['test'])} clips that are not the whole AN4"
            )
        own = [clip for clip in clips["train"] if shortest <= len(clip.samples_S) / _RATE <= longest]
        if not own:
            raise ValueError(
                f"shortest is {shortest} and longest is {longest}: none of the "
                f"{len(clips['train'])} training clips has a length between them"
            )
        super().__init__(
            train=own,
            test=clips["test"],
            rate=_RATE,
            checksums={
                **{f"an4-{split}-samples": sums[split] for split in _SPLITS},
                **{f"an4-{split}-transcripts": transcripts_digest(clips[split]) for split in _SPLITS},
            },
            augment=augment,
            loaders=loaders,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Download AN4's sph files into `root`/an4, unless there are clips, and verify all samples."""
        archive = root / "an4_sphere.tar.gz"
        with preparing(root, "an4", is_there=partial(_listed, root / "an4")) as is_missing:
            if is_missing:
                unpack(download(cls.urls, archive), root)
        if not cls(root).whole:
            raise DataError(
                f"the clips of {root / 'an4'} are not the whole AN4: remove it and {archive.name}, "
                "and run `sage data prepare an4`; or use them as they are"
            )


def _listed(folder: Path, train_manifest: str = "", test_manifest: str = "") -> dict[str, Listed]:
    manifests = {"train": train_manifest, "test": test_manifest}
    if all(manifests.values()):
        return {split: from_manifest(folder / name) for split, name in manifests.items()}
    if any(manifests.values()):
        given, other = ("train", "test") if train_manifest else ("test", "train")
        raise ValueError(f"{given}_manifest is {manifests[given]!r} without {other}_manifest: give both")
    return {split: from_fileids(folder, f"an4_{split}", dataset="an4") for split in _SPLITS}


def _read(listed: Listed) -> list[Clip]:
    clips = []
    for path, transcript in listed:
        symbols = numbered(transcript)
        if not symbols:
            raise DataError(f"the transcript of {path}, {transcript!r}, has no letter: correct it")
        clips.append(Clip(read_clip(path, _RATE), symbols))
    return clips


DATASET = AN4
