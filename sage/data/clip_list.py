"""Lists of clips with their transcripts: CMU's file ids and transcription, and manifests of file pairs."""

import re
from pathlib import Path

from sage import storage
from sage.data.fetch import DataError
from sage.data.sound_files import SUFFIXES

Listed = list[tuple[Path, str]]
"""The files of clips, and their transcripts."""


def from_fileids(folder: Path, name: str, *, dataset: str) -> Listed:
    """Read `etc/NAME.fileids` and `etc/NAME.transcription`; clips are `wav/ID` with the ending of a format.

    A transcript is a line `WORDS (id)`, or `<s> WORDS </s> (id)`, where id is the last part of the clip's ID.

    Args:
        dataset: The name for `sage data prepare`, which messages give.

    Raises:
        DataError: if a file is missing, or the lists do not fit each other.
    """
    paths = [folder / "etc" / f"{name}.{ending}" for ending in ("fileids", "transcription")]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing: run `sage data prepare {dataset}`, or set --data.folder")
    ids, transcripts = (_lines(path) for path in paths)
    if len(ids) != len(transcripts):
        raise DataError(
            f"{paths[0]} has {len(ids)} lines, and {paths[1]} has {len(transcripts)}: "
            f"remove {folder} and run `sage data prepare {dataset}`"
        )
    suffix, listed = SUFFIXES[0], []
    for number, (clip, line) in enumerate(zip(ids, transcripts, strict=True), 1):
        match = re.fullmatch(r"(.*)\((\S+)\)", line)
        if match is None or match[2] != clip.rpartition("/")[2]:
            raise DataError(
                f"{paths[1]}, line {number}: {line!r} does not end with the id ({clip.rpartition('/')[2]}): "
                f"remove {folder} and run `sage data prepare {dataset}`"
            )
        stem = str(folder / "wav" / clip)
        found = next((each for each in (suffix, *SUFFIXES) if Path(stem + each).is_file()), None)
        if found is None:
            raise DataError(
                f"{stem} is missing, with {', '.join(SUFFIXES)}: run `sage data prepare {dataset}`"
            )
        suffix = found
        listed.append((Path(stem + suffix), re.sub(r"</?s>", "", match[1]).strip()))
    return listed


def from_manifest(manifest: Path) -> Listed:
    """Read lines `CLIP,TEXT` of two files each, as deepspeech.pytorch writes them, relative to the manifest.

    Raises:
        DataError: if the manifest or a text is missing, or a line is no pair.
    """
    if not manifest.is_file():
        raise DataError(f"{manifest} is missing: expected are lines CLIP,TEXT, the names of two files")
    listed = []
    for number, line in enumerate(_lines(manifest), 1):
        clip, comma, text = line.partition(",")
        path = manifest.parent / text.strip()
        if not comma or not text.strip():
            raise DataError(f"{manifest}, line {number}: {line!r} is not CLIP,TEXT, the names of two files")
        if not path.is_file():
            raise DataError(f"{path} is missing, the transcript of line {number} of {manifest}")
        listed.append((manifest.parent / clip.strip(), storage.read_text(path).strip()))
    return listed


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in storage.read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: copy it again")
    return lines
