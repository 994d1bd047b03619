"""How two processes that know one secret prove it to each other over TCP, without sending it.

Each sends a number used once, and answers the other's with its HMAC-SHA256 under the secret (RFC 2104), so a
listener learns nothing that he could use, and nobody can pose as rank 0 either. Lines have a longest length.
"""

import hashlib
import hmac
import json
import secrets
import socket
import time
from typing import IO

PROOF_SECONDS = 5.0
"""Seconds that whoever connects may take to prove itself."""

PROOF_BYTES = 512
"""The longest line of the proof."""


class LineTooLong(ValueError):
    """The other side sends more than any line of ours has."""


class Stranger(ValueError):
    """The other side does not know the secret."""


def admit(door: socket.socket, secret: str) -> int:
    """Have whoever has connected prove that it knows the secret, prove it too, and return its rank.

    Raises:
        Stranger: where it does not.
        LineTooLong, ValueError: where it talks nonsense.
        OSError: where it breaks off, or takes too long.
    """
    end = time.monotonic() + PROOF_SECONDS
    own = secrets.token_hex(16)
    door.settimeout(PROOF_SECONDS)
    write_line(door, json.dumps({"sage": own}))
    told = _object(_line_of(door, end))
    rank, theirs, proof = told.get("rank"), told.get("nonce"), told.get("proof")
    if not (type(rank) is int and isinstance(theirs, str) and isinstance(proof, str)):
        raise Stranger("it gives no proof")
    if not hmac.compare_digest(_proof(secret, "guest", own, theirs, rank).encode(), proof.encode()):
        raise Stranger("its proof is wrong")
    write_line(door, json.dumps({"proof": _proof(secret, "host", theirs, own, rank)}))
    return rank


def prove(door: socket.socket, secret: str, rank: int) -> None:
    """Prove to the process that has been connected to that this one knows the secret; it must prove it too.

    The connection's time-out, which must be set, is what all of it may take; it stays as it is.

    Raises:
        Stranger: where it does not.
        LineTooLong, ValueError: where it talks nonsense.
        OSError: where it breaks off, or takes too long.
    """
    seconds = door.gettimeout()
    assert seconds is not None
    end = time.monotonic() + seconds
    own = secrets.token_hex(16)
    theirs = _object(_line_of(door, end)).get("sage")
    if not isinstance(theirs, str):
        raise Stranger("it is no agent of `sage doctor`")
    proof = _proof(secret, "guest", theirs, own, rank)
    write_line(door, json.dumps({"rank": rank, "nonce": own, "proof": proof}))
    answer = _object(_line_of(door, end)).get("proof")
    door.settimeout(seconds)
    expected = _proof(secret, "host", own, theirs, rank)
    if not (isinstance(answer, str) and hmac.compare_digest(expected.encode(), answer.encode())):
        raise Stranger("its proof is wrong")


def read_line(lines: IO[bytes], longest: int) -> str:
    """A line of UTF-8 without its end; "" at the end of all lines.

    Raises:
        LineTooLong: where it has more bytes than `longest`; no more of it is read.
        ValueError: where it is no UTF-8.
    """
    line = lines.readline(longest + 1)
    if len(line) > longest:
        raise LineTooLong(f"a line of over {longest} bytes")
    return line.decode().rstrip("\n")


def write_line(door: socket.socket, text: str) -> None:
    """Send a line."""
    door.sendall(text.encode() + b"\n")


def _line_of(door: socket.socket, end: float) -> str:
    """The next line, and not a byte of what follows it; it must be there at a time of the monotonic clock."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) >= PROOF_BYTES:
            raise LineTooLong(f"a line of over {PROOF_BYTES} bytes")
        door.settimeout(max(0.001, end - time.monotonic()))
        piece = door.recv(PROOF_BYTES, socket.MSG_PEEK)
        if not piece:
            raise ConnectionResetError("it hung up")
        length = piece.find(b"\n") + 1 or len(piece)
        line += door.recv(length)
    return line.decode()


def _object(line: str) -> dict[str, object]:
    told = json.loads(line)
    if not isinstance(told, dict):
        raise Stranger("it sends no object")
    return told


def _proof(secret: str, who: str, asked: str, own: str, rank: int) -> str:
    text = json.dumps([who, asked, own, rank])
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
