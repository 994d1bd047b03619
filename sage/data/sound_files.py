"""Reads clips of sound: wav, FLAC, NIST's sph, and raw samples without a header."""
# S = samples of a clip

import hashlib
import io
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sage.data.fetch import DataError
from sage.storage import open_regular

SUFFIXES = (".flac", ".wav", ".sph", ".raw")
"""The file formats, by the endings of the names."""

_SPH_FIELDS = ("sample_rate", "channel_count", "sample_n_bytes", "sample_byte_format", "sample_count")

Samples = npt.NDArray[np.int16]


class _Wrong(ValueError):
    """What is wrong with the content of a file."""


def read_clip(path: Path, rate: int) -> Tensor:
    """Read the samples of a clip of one channel and 16 bits, as int16 of shape (S).

    A file of samples without a header (`.raw`) is big-endian, as AN4's are. FLAC needs the package soundfile;
    the samples are compared with the MD5 sum in the file.

    Args:
        rate: The samples per second that the file must have.

    Raises:
        DataError: if the file is missing or damaged, or has other channels, bits or another rate.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"{path} has no ending of a known format: expected is {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} is missing: copy the clips again, or take it out of the list")
    with open_regular(path) as file:
        content = file.read()
    try:
        samples_S = _READERS[suffix](content, rate)
        if len(samples_S) <= rate // 100:
            raise _Wrong(f"it has {len(samples_S)} samples, and a clip needs {rate // 100 + 1}")
    except ImportError as error:
        raise DataError(
            f"{path} is FLAC, for which the package soundfile is missing ({error}): "
            "pip install 'sage-bench[speech]', or convert the clips to wav"
        ) from error
    except (ValueError, RuntimeError, EOFError, wave.Error) as error:
        what = " ".join(str(error).split())
        raise DataError(
            f"{path} is damaged or in another format: {what}: copy or convert it again"
        ) from error
    return torch.from_numpy(samples_S.astype(np.int16))


def _raw(content: bytes, rate: int) -> Samples:
    return _samples(content, ">i2")


def _wav(content: bytes, rate: int) -> Samples:
    with wave.open(io.BytesIO(content)) as file:
        _check(file.getframerate(), file.getnchannels(), 8 * file.getsampwidth(), rate)
        samples_S = _samples(file.readframes(file.getnframes()), "<i2")
        _check_length(len(samples_S), file.getnframes())
    return samples_S


def _sph(content: bytes, rate: int) -> Samples:
    """Read NIST SPHERE: two lines, lines `name -type value` up to `end_head`, and the samples."""
    first, size, *lines = content[:16384].split(b"\n")
    if first != b"NIST_1A":
        raise _Wrong("it does not begin with NIST_1A")
    fields = {}
    for line in lines:
        if line.strip() == b"end_head":
            break
        name, _, value = line.decode("latin-1").split(maxsplit=2)
        fields[name] = value.strip()
    else:
        raise _Wrong("its header has no end_head")
    coding = fields.get("sample_coding", "pcm")
    if coding != "pcm":
        raise _Wrong(f"its sample_coding is {coding}, and only pcm is read")
    if absent := [name for name in _SPH_FIELDS if name not in fields]:
        raise _Wrong(f"its header has no {', '.join(absent)}")
    bits = 8 * int(fields["sample_n_bytes"])
    _check(int(fields["sample_rate"]), int(fields["channel_count"]), bits, rate)
    order = {"01": "<i2", "10": ">i2"}.get(fields["sample_byte_format"])
    if order is None:
        raise _Wrong(f"its sample_byte_format is {fields['sample_byte_format']}, expected is 01 or 10")
    samples_S = _samples(content[int(size) :], order)
    _check_length(len(samples_S), int(fields["sample_count"]))
    return samples_S


def _flac(content: bytes, rate: int) -> Samples:
    try:
        import soundfile
    except OSError as error:  # its library cannot be loaded
        raise ImportError(str(error)) from error

    info = soundfile.info(io.BytesIO(content))
    bits = 16 if info.subtype == "PCM_16" else 0
    _check(info.samplerate, info.channels, bits, rate)
    samples_S = np.asarray(soundfile.read(io.BytesIO(content), dtype="int16")[0], np.int16)
    # The first block of a FLAC file ends with the MD5 sum of its samples, or zeros if it has none.
    found, wanted = hashlib.md5(samples_S.astype("<i2").tobytes(), usedforsecurity=False), content[26:42]
    if any(wanted) and found.digest() != wanted:
        raise _Wrong("the MD5 sum of its samples is not the one that it states")
    return samples_S


def _samples(content: bytes, order: str) -> Samples:
    if len(content) % 2:
        raise _Wrong(f"it has {len(content)} bytes of samples, which is not even")
    return np.frombuffer(content, order)


def _check(rate: int, channels: int, bits: int, wanted: int) -> None:
    if (rate, channels, bits) != (wanted, 1, 16):
        depth = f"{bits} bits" if bits else "not 16 bits"
        raise _Wrong(
            f"it has {rate} samples per second, {channels} channels and {depth}: "
            f"expected is {wanted}, one channel and 16 bits"
        )


def _check_length(found: int, wanted: int) -> None:
    if found != wanted:
        raise _Wrong(f"it has {found} of {wanted} samples")


_READERS = {".flac": _flac, ".wav": _wav, ".sph": _sph, ".raw": _raw}
