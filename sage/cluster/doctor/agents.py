"""The agents of `sage doctor`: where a job's ranks would be, how agents start there, and what they say."""

import os
import queue
import re
import secrets
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sage.cluster.connection import read_lines
from sage.cluster.doctor.agent import IMPORT_SECONDS, MARK
from sage.cluster.doctor.node_facts import Facts
from sage.cluster.doctor.reported_facts import LONGEST, Ear
from sage.cluster.hosts import read_hosts
from sage.cluster.launch import port_on, seat
from sage.cluster.remote import Crew, Ended, Said, Task, surroundings
from sage.cluster.settings import Examination, ssh_words
from sage.cluster.signals import held
from sage.cluster.supervisor import die_with_parent
from sage.comm.address import GLOO, NCCL
from sage.comm.launchers import clean_environment
from sage.comm.rendezvous import SECRET
from sage.comm.variables import told
from sage.output.text import clean_text

BATCH = Path(__file__).parents[2] / "jobs" / "batch.sh"
"""What a job's batch script sources; the doctor has it choose where to meet, as the job would."""

START_SECONDS = 60.0
"""That SLURM may take to start a step."""

FAREWELL = 5.0
"""Seconds that agents have to end when told so."""

STEPS_AT_MOST = 20
"""How many times the seconds of a step an examination may take, beside starting and importing torch."""

LINES = 10_000
"""Lines that may wait to be read."""

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


def job(given: Examination) -> Job:
    """The job of this allocation, of the hosts file or of this machine alone.

    Raises:
        NotReached: where the first node does not answer.
        ValueError: where the hosts file or SLURM's variables are wrong, or each rank of a job calls this.
    """
    if given.hosts:
        return _by_ssh(given, given.hosts)
    if "SLURM_JOB_ID" not in os.environ:
        return _here(given)
    is_one_of_many = "SLURM_PTY_PORT" not in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    if is_one_of_many or os.environ.get("SLURM_PROCID", "0") != "0":
        raise ValueError("call it once in a job, without srun: it calls srun itself")
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise ValueError(
            f"{told(os.environ, 'SLURM_JOB_ID')} is set, but SLURM_JOB_NODELIST is not set: unset the former "
            "to examine this machine alone"
        )
    return _by_slurm(given)


def listen(job: Job, seconds: float) -> tuple[dict[int, dict[str, Facts]], list[str]]:
    """What the agents say, by rank and step, and the last lines that somebody else has said meanwhile.

    Nothing is believed that an agent would not say: a rank that says it has the step `garbled`, which tells
    why, and is not listened to any more.

    Args:
        seconds: What one step of an agent may take.
    """
    lines: Lines = queue.Queue(LINES)
    ears = {rank: Ear(set(job.nodes)) for rank in job.nodes}
    besides: deque[str] = deque(maxlen=20)
    end = time.monotonic() + START_SECONDS + STEPS_AT_MOST * seconds + IMPORT_SECONDS
    with job.start(lines) as sources:
        while sources and not all("end" in ear.facts for ear in ears.values()):
            some_have_ended = any("end" in ear.facts for ear in ears.values())
            patience = 3 * seconds + (0 if some_have_ended else IMPORT_SECONDS)
            try:
                line = lines.get(timeout=min(patience, max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
            if line is None:
                sources -= 1
                continue
            piece = re.search(rf"\b{MARK} ([0-9]{{1,7}}) ([0-9]{{1,7}})/([0-9]{{1,7}}) (.*)", line)
            if piece is None or int(piece[1]) not in ears:
                besides.append(clean_text(line, LONGEST))
            else:
                ears[int(piece[1])].hear(int(piece[2]), int(piece[3]), piece[4])
    return {rank: ear.facts for rank, ear in ears.items() if ear.facts}, [*filter(None, besides)]


# The three ways to have ranks.


def _here(given: Examination) -> Job:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = given.port or listener.getsockname()[1]
    hostip = given.hostip or "127.0.0.1"
    command = _agent(given)
    around = _around(given, hostip, port) | {"world_size": str(given.ranks)}
    agents = [(command, around | {"rank": str(rank)}) for rank in range(given.ranks)]
    nodes = dict.fromkeys(range(given.ranks), socket.gethostname())
    return Job("this machine alone", nodes, hostip, port, (), partial(_processes, agents, given.cwd))


def _by_slurm(given: Examination) -> Job:
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = _ask(command).split()
    if not hosts:
        raise NotReached("scontrol names no node of it", "this job", f"try `{shlex.join(command)}`")
    slots = tasks_per_node(os.environ.get("SLURM_TASKS_PER_NODE", f"1(x{len(hosts)})"), len(hosts))
    nodes = dict(enumerate(host for host, count in zip(hosts, slots, strict=True) for _ in range(count)))
    # Where the ranks would meet only their first node can tell, and salloc's shell may be elsewhere.
    asked = {name: str(value) for name in ("hostip", "port") if (value := getattr(given, name))}
    meet = f". {shlex.quote(str(BATCH))}; sage_set_rendezvous; echo sage-meet $hostip $port"
    srun = ("srun", "--overlap", "--export=ALL")
    first = ("--nodes=1", "--ntasks=1", f"--nodelist={hosts[0]}")
    asking = [*srun, *first, "bash", "-c", meet]
    said = _ask(asking, asked)
    found = re.search(r"^sage-meet ([\w.:%-]+) ([0-9]{1,5})$", said, re.MULTILINE)
    if found is None:
        shown = clean_text(said, 100) or "nothing"
        raise NotReached(f"its first node says {shown}", "this job", f"try `{shlex.join(asking)}`")
    hostip, port = found[1], int(found[2])
    cpus = [f"--cpus-per-task={count}"] if (count := os.environ.get("SLURM_CPUS_PER_TASK")) else []
    command = [*srun, "--kill-on-bad-exit=0", *cpus, *_agent(given, hosts[0])]
    start = partial(_processes, [(command, _around(given, hostip, port, keep="SLURM"))], given.cwd)
    return Job(f"job {os.environ['SLURM_JOB_ID']}, through srun", nodes, hostip, port, (hosts[0],), start)


def tasks_per_node(told: str, num_nodes: int) -> list[int]:
    """The number of tasks on each node, as SLURM_TASKS_PER_NODE says it.

    Raises:
        ValueError: where it says it not of so many nodes.

    >>> tasks_per_node("2(x3),1", 4)
    [2, 2, 2, 1]
    """
    counts: list[int] = []
    for part in told.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if found is not None and len(counts) <= num_nodes:
            counts += [int(found[1])] * min(int(found[2] or 1), num_nodes + 1)
    if len(counts) != num_nodes:
        shown = clean_text(told, 80)
        raise ValueError(
            f"SLURM_TASKS_PER_NODE={shown}: expected counts of tasks for {num_nodes} nodes, as 2(x3),1"
        )
    return counts


def _by_ssh(given: Examination, file: Path) -> Job:
    hosts, ssh = read_hosts(file, given.ranks_per_host), ssh_words(given.ssh)
    hostip = given.hostip or hosts[0].address
    try:
        port = given.port or port_on(hosts[0].name, ssh=ssh, python=given.python)
    except OSError as error:
        raise NotReached(str(error), hosts[0].name, f"try `{given.ssh} {hosts[0].name} true`") from error
    seats = seat(hosts, _agent(given), hostip=hostip, port=port, cwd=str(given.cwd.absolute()))
    tasks = [replace(task, env={**task.env, **_interface(given)}) for task in seats]
    nodes = {task.rank: task.host for task in tasks}
    start = partial(_crew, tasks, ssh, given.python)
    return Job(f"hosts of {file}, over ssh", nodes, hostip, port, (), start)


def _agent(given: Examination, *names: str) -> list[str]:
    command = [given.python, "-m", "sage.cluster.doctor.agent", f"--runs={given.runs}"]
    command += [f"--timeout={given.timeout:g}", f"--mark={secrets.token_hex(4)}"]
    return [*command, *(f"--name={name}" for name in names)]


def _around(given: Examination, hostip: str, port: int, keep: str = "") -> dict[str, str]:
    """The environment of agents; of launchers' variables only those remain that begin with `keep`."""
    inherited = clean_environment(os.environ)
    if keep:
        inherited |= {name: value for name, value in os.environ.items() if name.startswith(keep)}
    meeting = {"hostip": hostip, "port": str(port), SECRET: secrets.token_hex(16)}
    return {**inherited, **surroundings(), **_interface(given), **meeting}


def _interface(given: Examination) -> dict[str, str]:
    return {GLOO: given.interface, NCCL: f"={given.interface}"} if given.interface else {}


def _ask(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """What a command of SLURM's prints."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=START_SECONDS,
            env={**os.environ, **(environ or {})},
        ).stdout
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise NotReached(
            f"{command[0]}: {clean_text(last)}", "this job", f"try `{shlex.join(command)}`"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotReached(str(error), "this job", f"try `{shlex.join(command)}`") from error


# What starts agents, and brings their lines.


@contextmanager
def _processes(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], cwd: Path, lines: Lines
) -> Iterator[int]:
    """Agents, or the srun that has them, as children of this process."""
    children: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    try:
        for command, environ in commands:
            with held():
                children.append(_start(command, environ, cwd))
            readers.append(threading.Thread(target=_read, args=(children[-1], lines), daemon=True))
            readers[-1].start()
        yield len(children)
    finally:
        _end(children)
        for reader in readers:  # what a child has left behind may hold its pipe
            reader.join(0.5)


def _start(command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    except (OSError, ValueError) as error:
        fix = f"try `{clean_text(shlex.join(command), 200)}`"
        raise NotReached(f"cannot start {command[0]}: {error}", "this machine", fix) from error


def _read(child: subprocess.Popen[bytes], lines: Lines) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in read_lines(child.stdout):
            lines.put(line)
    lines.put(None)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that do not end by themselves: all of them together have twice `FAREWELL` seconds."""
    for step in (lambda child: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        end = time.monotonic() + FAREWELL  # who is done needs a moment to go
        for child in children:
            if child.poll() is None:
                step(child)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.01, end - time.monotonic()))


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
        threading.Thread(target=read, args=(crew,), daemon=True).start()
        yield 1
