"""Commands `sage` and `python` whose processes are forked from a server that has imported the slow modules.

Importing torch takes two seconds of processor time, which each start of `python -m sage` would spend again.
The executables made here are for tests in which a command runs as a process of its own, with its own folder,
environment, signals and exit status, but not for tests of how Python starts. A command is in the namespaces
of its client, such as those of a node of tests/slurm.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import random
import runpy
import selectors
import signal
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import leftovers
import torch
from launcher import CONTEXT

from sage.cli.main import main

PYTHON = "PYTHON_EXEC"
"""The variable with the Python that torchrun starts; commands forked here start it in place of their own."""

LIBC = ctypes.CDLL(None, use_errno=True)  # os.setns is new in Python 3.12

CLIENT = r'''#!{python} -IS
"""Asks the server for a process with this one's arguments, folder, environment and standard streams."""
import json, os, signal, socket, sys

argv = sys.argv[1:]
if {is_python}:
    words = argv[argv[:1] == ["-u"] :]
    is_other = not words or (words[0].startswith("-") and words[0] != "-m")  # neither a module nor a file
    if is_other or words[1:2] == ["submitit.local._local"]:  # whose process id is the name of its job
        os.execv({python!r}, [{python!r}, *argv])
with socket.socket(socket.AF_UNIX) as server:
    # Through a descriptor, because the path of a socket is limited to 107 bytes.
    server.connect(f"/proc/self/fd/{{os.open({folder!r}, os.O_PATH)}}/socket")
    os.umask(mask := os.umask(0))
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    ignored = [each for each in signals if signal.getsignal(each) is signal.SIG_IGN]
    request = [{is_python}, argv, os.getcwd(), dict(os.environ), mask, ignored]
    text = json.dumps(request).encode()
    socket.send_fds(server, [len(text).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(text)
    answers = server.makefile()
    pid = int(answers.readline())
    for number in signals:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    status = int(answers.readline())
if status < 0:  # ended by a signal, and so does this process
    signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
'''


@contextmanager
def executable(folder: Path) -> Iterator[Path]:
    """Start the server, write the executables `sage` and `python` into the folder, and yield that of `sage`.

    `python` forks a process for `python [-u] -m MODULE` and `python [-u] FILE`; other arguments start Python,
    as does submitit's controller of a local job.
    The server ends with the context.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")  # as in the client
        os.close(descriptor)
        listener.listen(64)
        server = CONTEXT.Process(target=_serve, args=(listener,))
        server.start()
    assert server.pid is not None
    leftovers.HELPERS.add(server.pid)
    for name in ("sage", "python"):
        path = folder / name
        client = CLIENT.format(python=sys.executable, folder=str(folder), is_python=name == "python")
        path.write_text(client)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    try:
        yield folder / "sage"
    finally:
        leftovers.HELPERS.discard(server.pid)
        server.kill()
        server.join()


def _serve(listener: socket.socket) -> None:
    """Fork a process for each request, until the tests' process has ended."""
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    parent = multiprocessing.parent_process()
    assert parent is not None
    with selectors.DefaultSelector() as selector:
        selector.register(parent.sentinel, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        clients: dict[int, tuple[int, socket.socket]] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj == parent.sentinel:
                    for pid, _ in clients.values():
                        os.kill(pid, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    client, _ = listener.accept()
                    try:
                        request, streams, peer = _receive(client)
                        pid = _fork(peer)
                    except (OSError, ValueError):  # the client was killed meanwhile
                        client.close()
                        continue
                    if pid == 0:
                        selector.close()
                        listener.close()
                        _enter(peer, "net", "uts", "mnt")
                        client.sendall(f"{os.getpid()}\n".encode())  # its id in the client's namespace
                        client.close()
                        _become(request, streams)
                    for descriptor in streams:
                        os.close(descriptor)
                    ended = os.pidfd_open(pid)
                    clients[ended] = (pid, client)
                    selector.register(ended, selectors.EVENT_READ)
                    selector.register(client, selectors.EVENT_READ, pid)
                elif key.data is not None:  # the client was killed
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                else:
                    assert isinstance(key.fileobj, int)
                    pid, client = clients.pop(key.fileobj)
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with suppress(KeyError):
                        selector.unregister(client)
                    with suppress(OSError):
                        client.sendall(f"{status}\n".encode())
                    client.close()


def _receive(client: socket.socket) -> tuple[list[Any], list[int], int]:
    """Return a client's request, streams and process id."""
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    text = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    peer = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return json.loads(text), streams, peer


def _fork(pid: int) -> int:
    """Fork with the process namespace of a process."""
    _enter(pid, "pid")
    try:
        return os.fork()
    finally:
        _enter("self", "pid")


def _enter(pid: int | str, *kinds: str) -> None:
    """Enter those namespaces of a process that differ from this process's, which needs root.

    Entering a process namespace applies to the children that this process starts from then on.
    """
    for kind in kinds:
        own = "pid_for_children" if kind == "pid" else kind
        if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{own}"):
            descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
            if LIBC.setns(descriptor, 0):
                raise OSError(ctypes.get_errno(), f"setns, {kind}")
            os.close(descriptor)


def _become(request: list[Any], streams: list[int]) -> None:
    """Turn this fork into `python -m sage` or `python` with the request's arguments, and end it."""
    is_python, argv, folder, environment, mask, ignored = request
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.umask(mask)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment.get(PYTHON, sys.executable)
    random.seed()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if is_python:
        _run(argv)
    sys.path.insert(0, folder)
    sys.argv = ["sage", *argv]
    sys.exit(main())


def _run(argv: list[str]) -> NoReturn:
    """Do what `python [-u] -m MODULE ...` or `python [-u] FILE ...` does."""
    if argv[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        argv = argv[1:]
    is_module = argv[0] == "-m"
    sys.argv = argv[is_module:]
    if "PYTHONSAFEPATH" not in os.environ:
        sys.path.insert(0, os.getcwd() if is_module else os.path.dirname(os.path.abspath(argv[0])))
    if is_module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")
    sys.exit()
