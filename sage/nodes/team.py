"""The agents of `sage doctor`: where a job's ranks would be, how agents start there, and what they say."""

import argparse
import json
import os
import queue
import re
import secrets
import shlex
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sage
from sage.comm.address import GLOO, NCCL
from sage.nodes.examine import IMPORT_SECONDS, MARK
from sage.nodes.hosts import read_hosts
from sage.nodes.launch import port_on, seat
from sage.nodes.look import Facts
from sage.nodes.remote import Crew, Ended, Said, Task, surroundings

BATCH = Path(sage.__file__).parent / "jobs" / "batch.sh"
"""What a job's batch script sources; the doctor has it choose where to meet, as the job would."""

START_SECONDS = 60.0
"""That SLURM may take to start a step."""

FAREWELL = 5.0
"""Seconds that agents have to end when told so."""

Lines = queue.Queue[str | None]


class NotReached(Exception):
    """The agents could not even be started; with where, and a fix."""

    def __init__(self, message: str, where: str, fix: str) -> None:
        super().__init__(message)
        self.where, self.fix = where, fix


@dataclass(frozen=True)
class Job:
    """The ranks to examine."""

    how: str
    nodes: Mapping[int, str]
    """Each rank's node."""
    hostip: str
    port: int
    names: tuple[str, ...]
    """Names that the ranks should know besides."""
    start: Callable[[Lines], AbstractContextManager[int]]
    """Starts the agents; their lines come in the queue, and then a None from each of so many sources."""


def job(given: argparse.Namespace) -> Job:
    """The job of this allocation, of the hosts file or of this machine alone.

    Raises:
        NotReached: where the first node does not answer.
        ValueError: where the hosts file is wrong, or each rank of a job calls this.
    """
    if given.hosts:
        return _by_ssh(given)
    if "SLURM_JOB_ID" not in os.environ:
        return _here(given)
    if os.environ.get("SLURM_PROCID", "0") != "0":
        raise ValueError("call it once in a job, without srun: it calls srun itself")
    return _by_slurm(given)


def listen(job: Job, seconds: float) -> tuple[dict[int, dict[str, Facts]], list[str]]:
    """What the agents say, by rank and step, and the last lines that somebody else has said meanwhile.

    Args:
        seconds: What one step of an agent may take.
    """
    lines: Lines = queue.Queue()
    facts: dict[int, dict[str, Facts]] = {}
    unfinished: dict[int, str] = {}
    besides: deque[str] = deque(maxlen=20)
    with job.start(lines) as sources:
        while sources and not all("end" in facts.get(rank, {}) for rank in job.nodes):
            some_have_ended = any("end" in found for found in facts.values())
            try:
                line = lines.get(timeout=3 * seconds + (0 if some_have_ended else IMPORT_SECONDS))
            except queue.Empty:
                break
            if line is None:
                sources -= 1
                continue
            piece = re.search(rf"\b{MARK} (\d+) (\d+)/(\d+) (.*)", line)
            if piece is None:
                besides.append(line.rstrip())
                continue
            rank = int(piece[1])
            unfinished[rank] = unfinished.get(rank, "") + piece[4]
            if piece[2] == piece[3]:
                facts.setdefault(rank, {}).update(json.loads(unfinished.pop(rank)))
    return facts, list(besides)


# The three ways to have ranks.


def _here(given: argparse.Namespace) -> Job:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = given.port or listener.getsockname()[1]
    hostip = given.hostip or "127.0.0.1"
    command = _agent(given)
    around = _around(given, hostip, port) | {"world_size": str(given.ranks)}
    agents = [(command, around | {"rank": str(rank)}) for rank in range(given.ranks)]
    nodes = dict.fromkeys(range(given.ranks), socket.gethostname())
    return Job("this machine alone", nodes, hostip, port, (), partial(_processes, agents, given.cwd))


def _by_slurm(given: argparse.Namespace) -> Job:
    hosts = _ask(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split()
    tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_TASKS_PER_NODE", f"1(x{len(hosts)})"))
    slots = [int(count) for count, times in tasks for _ in range(int(times or 1))]
    nodes = dict(enumerate(host for host, count in zip(hosts, slots, strict=True) for _ in range(count)))
    # Where the ranks would meet only their first node can tell, and salloc's shell may be elsewhere.
    asked = {name: str(value) for name in ("hostip", "port") if (value := getattr(given, name))}
    meet = f". {shlex.quote(str(BATCH))}; sage_meet; echo sage-meet $hostip $port"
    srun = ("srun", "--overlap", "--export=ALL")
    first = ("--nodes=1", "--ntasks=1", f"--nodelist={hosts[0]}")
    said = _ask([*srun, *first, "bash", "-c", meet], asked)
    found = re.search(r"^sage-meet (\S+) (\d+)$", said, re.MULTILINE)
    assert found is not None, said
    hostip, port = found[1], int(found[2])
    cpus = [f"--cpus-per-task={count}"] if (count := os.environ.get("SLURM_CPUS_PER_TASK")) else []
    command = [*srun, "--kill-on-bad-exit=0", *cpus, *_agent(given, hosts[0])]
    start = partial(_processes, [(command, _around(given, hostip, port))], given.cwd)
    return Job(f"job {os.environ['SLURM_JOB_ID']}, through srun", nodes, hostip, port, (hosts[0],), start)


def _by_ssh(given: argparse.Namespace) -> Job:
    hosts, ssh = read_hosts(given.hosts, given.ranks_per_host), shlex.split(given.ssh)
    hostip = given.hostip or hosts[0].address
    try:
        port = given.port or port_on(hosts[0].name, ssh=ssh, python=given.python)
    except OSError as error:
        raise NotReached(str(error), hosts[0].name, f"try `{given.ssh} {hosts[0].name} true`") from error
    seats = seat(hosts, _agent(given), hostip=hostip, port=port, cwd=str(given.cwd.absolute()))
    tasks = [replace(task, env={**task.env, **_interface(given)}) for task in seats]
    nodes = {task.rank: task.host for task in tasks}
    start = partial(_crew, tasks, ssh, given.python)
    return Job(f"hosts of {given.hosts}, over ssh", nodes, hostip, port, (), start)


def _agent(given: argparse.Namespace, *names: str) -> list[str]:
    command = [given.python, "-m", "sage.nodes.examine", f"--runs={given.runs}"]
    command += [f"--timeout={given.timeout:g}", f"--mark={secrets.token_hex(4)}"]
    return [*command, *(f"--name={name}" for name in names)]


def _around(given: argparse.Namespace, hostip: str, port: int) -> dict[str, str]:
    places = ("rank", "world_size", "local_rank")
    inherited = {name: value for name, value in os.environ.items() if name not in places}
    return {**inherited, **surroundings(), **_interface(given), "hostip": hostip, "port": str(port)}


def _interface(given: argparse.Namespace) -> dict[str, str]:
    return {GLOO: given.interface, NCCL: f"={given.interface}"} if given.interface else {}


def _ask(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """What a command of SLURM's prints."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=START_SECONDS,
            env={**os.environ, **(environ or {})},
        ).stdout
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise NotReached(f"{command[0]}: {last}", "this job", f"try `{shlex.join(command)}`") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotReached(str(error), "this job", f"try `{shlex.join(command)}`") from error


# What starts agents, and brings their lines.


@contextmanager
def _processes(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], cwd: Path, lines: Lines
) -> Iterator[int]:
    """Agents, or the srun that has them, as children of this process."""
    children = [
        subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for command, environ in commands
    ]
    readers = [threading.Thread(target=_read, args=(child, lines)) for child in children]
    for reader in readers:
        reader.start()
    try:
        yield len(children)
    finally:
        for child in children:
            _end(child)
        for reader in readers:
            reader.join()


def _read(child: subprocess.Popen[str], lines: Lines) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(FAREWELL)  # who is done needs a moment to go
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _crew(tasks: Sequence[Task], ssh: Sequence[str], python: str, lines: Lines) -> Iterator[int]:
    """Agents on other hosts, over ssh."""

    def read(crew: Crew) -> None:
        for event in crew:
            if isinstance(event, Said):
                lines.put(event.text)
            elif isinstance(event, Ended) and event.status != 0:
                lines.put(f"{event.host}: {event.reason or f'ended with status {event.status}'}")
        lines.put(None)

    with Crew(tasks, ssh=ssh, python=python) as crew:
        reader = threading.Thread(target=read, args=(crew,), daemon=True)
        reader.start()
        yield 1
