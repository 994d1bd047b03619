"""Mutual authentication of two processes over TCP by a shared secret, without sending the secret.

Each side sends a nonce and answers the other's nonce with its HMAC-SHA256 under the secret (RFC 2104). An
eavesdropper learns nothing that can be reused, and no other process can pose as rank 0. The length of a line
is limited.
"""

import hashlib
import hmac
import json
import secrets
import socket
import time
from typing import IO

AUTHENTICATION_SECONDS = 5.0
"""Time limit for a client's authentication in seconds."""

AUTHENTICATION_BYTES = 512
"""The longest line of the authentication in bytes."""


class LineTooLong(ValueError):
    """The other side has sent a line over the limit."""


class AuthenticationError(ValueError):
    """The other side does not know the secret."""


def authenticate_client(connection: socket.socket, secret: str) -> int:
    """Authenticate a client, and this process to it; returns the client's rank.

    Raises:
        AuthenticationError: The client does not know the secret.
        LineTooLong, ValueError: Its messages are malformed.
        OSError: The connection is lost, or the time limit is exceeded.
    """
    end = time.monotonic() + AUTHENTICATION_SECONDS
    own = secrets.token_hex(16)
    connection.settimeout(AUTHENTICATION_SECONDS)
    write_line(connection, json.dumps({"sage": own}))
    message = _object(_line_of(connection, end))
    rank, theirs, proof = message.get("rank"), message.get("nonce"), message.get("proof")
    if not (type(rank) is int and isinstance(theirs, str) and isinstance(proof, str)):
        raise AuthenticationError("the client's message has no proof")
    if not hmac.compare_digest(_proof(secret, "client", own, theirs, rank).encode(), proof.encode()):
        raise AuthenticationError("the client's proof is wrong")
    write_line(connection, json.dumps({"proof": _proof(secret, "server", theirs, own, rank)}))
    return rank


def authenticate_to_server(connection: socket.socket, secret: str, rank: int) -> None:
    """Authenticate this process to the server, and the server to this process.

    The connection's time-out, which must be set, is the time limit for all of it; it is not changed.

    Raises:
        AuthenticationError: The server does not know the secret.
        LineTooLong, ValueError: Its messages are malformed.
        OSError: The connection is lost, or the time limit is exceeded.
    """
    seconds = connection.gettimeout()
    assert seconds is not None
    end = time.monotonic() + seconds
    own = secrets.token_hex(16)
    theirs = _object(_line_of(connection, end)).get("sage")
    if not isinstance(theirs, str):
        raise AuthenticationError("the server is not an agent of `sage doctor`")
    proof = _proof(secret, "client", theirs, own, rank)
    write_line(connection, json.dumps({"rank": rank, "nonce": own, "proof": proof}))
    answer = _object(_line_of(connection, end)).get("proof")
    connection.settimeout(seconds)
    expected = _proof(secret, "server", own, theirs, rank)
    if not (isinstance(answer, str) and hmac.compare_digest(expected.encode(), answer.encode())):
        raise AuthenticationError("the server's proof is wrong")


def read_line(lines: IO[bytes], longest: int) -> str:
    """A line of UTF-8 without its end; "" at the end of the stream.

    Raises:
        LineTooLong: The line has more than `longest` bytes; the rest is not read.
        ValueError: The line is not UTF-8.
    """
    line = lines.readline(longest + 1)
    if len(line) > longest:
        raise LineTooLong(f"a line of over {longest} bytes")
    return line.decode().rstrip("\n")


def write_line(connection: socket.socket, text: str) -> None:
    """Send a line."""
    connection.sendall(text.encode() + b"\n")


def _line_of(connection: socket.socket, end: float) -> str:
    """The next line, without reading beyond it; `end` is the deadline on the monotonic clock."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) >= AUTHENTICATION_BYTES:
            raise LineTooLong(f"a line of over {AUTHENTICATION_BYTES} bytes")
        connection.settimeout(max(0.001, end - time.monotonic()))
        piece = connection.recv(AUTHENTICATION_BYTES, socket.MSG_PEEK)
        if not piece:
            raise ConnectionResetError("the peer closed the connection")
        length = piece.find(b"\n") + 1 or len(piece)
        line += connection.recv(length)
    return line.decode()


def _object(line: str) -> dict[str, object]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise AuthenticationError("the message is not a JSON object")
    return message


def _proof(secret: str, side: str, theirs: str, own: str, rank: int) -> str:
    text = json.dumps([side, theirs, own, rank])
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
