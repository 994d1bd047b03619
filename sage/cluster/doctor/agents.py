"""The agents of `sage doctor`: the nodes of a job's ranks, starting agents there, and reading reports."""

import os
import queue
import re
import secrets
import shlex
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sage.cluster.doctor.agent import IMPORT_SECONDS, MARK
from sage.cluster.doctor.agent_processes import Lines, over_ssh, processes
from sage.cluster.doctor.agent_processes import StartError as StartError
from sage.cluster.doctor.node_facts import Facts
from sage.cluster.doctor.reported_facts import LONGEST, ReportParser
from sage.cluster.environment import forwarded_environment
from sage.cluster.hosts import read_hosts
from sage.cluster.launch import assign_ranks, port_on
from sage.cluster.settings import DoctorSettings, ssh_words
from sage.comm.address import GLOO, NCCL
from sage.comm.launchers import clean_environment
from sage.comm.rendezvous import SECRET
from sage.comm.variables import setting
from sage.output.text import clean_text

BATCH = Path(__file__).parents[2] / "jobs" / "batch.sh"
"""Sourced by a job's batch script; the doctor uses it to choose the rendezvous in the same way as the job."""

START_SECONDS = 60.0
"""Time limit for SLURM to start a step."""

STEPS_AT_MOST = 20
"""Time limit of a whole check as a multiple of a step's limit, without starting and importing torch."""

LINES = 10_000
"""The largest number of unread lines."""


@dataclass(frozen=True)
class Job:
    """The ranks to check."""

    how: str
    nodes: Mapping[int, str]
    """Each rank's node."""
    hostip: str
    port: int
    names: tuple[str, ...]
    """Other names that the ranks should be able to resolve."""
    start: Callable[[Lines], AbstractContextManager[int]]
    """Starts the agents; returns the number of sources. The queue gets lines; None ends a source."""


def job(given: DoctorSettings) -> Job:
    """The job of the hosts file, of this SLURM allocation, or of this machine only.

    Raises:
        StartError: The first node does not answer.
        ValueError: The hosts file or SLURM's variables are invalid, or each rank of a job calls this.
    """
    if given.hosts:
        return _by_ssh(given, given.hosts)
    if "SLURM_JOB_ID" not in os.environ:
        return _local(given)
    is_one_of_many = "SLURM_PTY_PORT" not in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    if is_one_of_many or os.environ.get("SLURM_PROCID", "0") != "0":
        raise ValueError("call it once in a job, without srun: it calls srun itself")
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise ValueError(
            f"{setting(os.environ, 'SLURM_JOB_ID')} is set, but SLURM_JOB_NODELIST is not set: unset the "
            "former to check this machine only"
        )
    return _by_slurm(given)


def collect_reports(job: Job, seconds: float) -> tuple[dict[int, dict[str, Facts]], list[str]]:
    """The agents' reports by rank and step, and the last lines of other output.

    Reports are validated. A rank with an invalid report has the step `garbled` with the reason, and its
    further lines are ignored.

    Args:
        job: The ranks to check.
        seconds: Time limit of an agent's step.
    """
    lines: Lines = queue.Queue(LINES)
    parsers = {rank: ReportParser(set(job.nodes)) for rank in job.nodes}
    other_lines: deque[str] = deque(maxlen=20)
    end = time.monotonic() + START_SECONDS + STEPS_AT_MOST * seconds + IMPORT_SECONDS
    with job.start(lines) as sources:
        while sources and not all("end" in parser.facts for parser in parsers.values()):
            some_have_ended = any("end" in parser.facts for parser in parsers.values())
            patience = 3 * seconds + (0 if some_have_ended else IMPORT_SECONDS)
            try:
                line = lines.get(timeout=min(patience, max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
            if line is None:
                sources -= 1
                continue
            piece = re.search(rf"\b{MARK} ([0-9]{{1,7}}) ([0-9]{{1,7}})/([0-9]{{1,7}}) (.*)", line)
            if piece is None or int(piece[1]) not in parsers:
                other_lines.append(clean_text(line, LONGEST))
            else:
                parsers[int(piece[1])].add(int(piece[2]), int(piece[3]), piece[4])
    facts = {rank: parser.facts for rank, parser in parsers.items() if parser.facts}
    return facts, [*filter(None, other_lines)]


# Jobs on this machine, under SLURM and over ssh.


def _local(given: DoctorSettings) -> Job:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = given.port or listener.getsockname()[1]
    hostip = given.hostip or "127.0.0.1"
    command = _agent(given)
    environment = _environment(given, hostip, port) | {"world_size": str(given.ranks)}
    agents = [(command, environment | {"rank": str(rank)}) for rank in range(given.ranks)]
    nodes = dict.fromkeys(range(given.ranks), socket.gethostname())
    return Job("this machine only", nodes, hostip, port, (), partial(processes, agents, given.cwd))


def _by_slurm(given: DoctorSettings) -> Job:
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = _output_of(command).split()
    if not hosts:
        raise StartError("scontrol lists no nodes", "this job", f"try `{shlex.join(command)}`")
    slots = tasks_per_node(os.environ.get("SLURM_TASKS_PER_NODE", f"1(x{len(hosts)})"), len(hosts))
    nodes = dict(enumerate(host for host, count in zip(hosts, slots, strict=True) for _ in range(count)))
    # The rendezvous is chosen on the job's first node; salloc's shell may run on another machine.
    given_place = {name: str(value) for name in ("hostip", "port") if (value := getattr(given, name))}
    choose = f". {shlex.quote(str(BATCH))}; sage_set_rendezvous; echo sage-rendezvous $hostip $port"
    srun = ("srun", "--overlap", "--export=ALL")
    first = ("--nodes=1", "--ntasks=1", f"--nodelist={hosts[0]}")
    choosing = [*srun, *first, "bash", "-c", choose]
    output = _output_of(choosing, given_place)
    found = re.search(r"^sage-rendezvous ([\w.:%-]+) ([0-9]{1,5})$", output, re.MULTILINE)
    if found is None:
        shown = clean_text(output, 100) or "nothing"
        fix = f"try `{shlex.join(choosing)}`"
        raise StartError(f"the first node printed {shown} instead of a rendezvous", "this job", fix)
    hostip, port = found[1], int(found[2])
    cpus = [f"--cpus-per-task={count}"] if (count := os.environ.get("SLURM_CPUS_PER_TASK")) else []
    command = [*srun, "--kill-on-bad-exit=0", *cpus, *_agent(given, hosts[0])]
    start = partial(processes, [(command, _environment(given, hostip, port, keep="SLURM"))], given.cwd)
    return Job(f"job {os.environ['SLURM_JOB_ID']}, through srun", nodes, hostip, port, (hosts[0],), start)


def tasks_per_node(text: str, num_nodes: int) -> list[int]:
    """The number of tasks on each node, from the value of SLURM_TASKS_PER_NODE.

    Raises:
        ValueError: The value is malformed, or has another number of nodes.

    >>> tasks_per_node("2(x3),1", 4)
    [2, 2, 2, 1]
    """
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if found is not None and len(counts) <= num_nodes:
            counts += [int(found[1])] * min(int(found[2] or 1), num_nodes + 1)
    if len(counts) != num_nodes:
        shown = clean_text(text, 80)
        raise ValueError(
            f"SLURM_TASKS_PER_NODE={shown}: expected counts of tasks for {num_nodes} nodes, as 2(x3),1"
        )
    return counts


def _by_ssh(given: DoctorSettings, file: Path) -> Job:
    hosts, ssh = read_hosts(file, given.ranks_per_host), ssh_words(given.ssh)
    hostip = given.hostip or hosts[0].address
    try:
        port = given.port or port_on(hosts[0].name, ssh=ssh, python=given.python)
    except OSError as error:
        raise StartError(str(error), hosts[0].name, f"try `{given.ssh} {hosts[0].name} true`") from error
    placed = assign_ranks(hosts, _agent(given), hostip=hostip, port=port, cwd=str(given.cwd.absolute()))
    tasks = [replace(task, env={**task.env, **_interface(given)}) for task in placed]
    nodes = {task.rank: task.host for task in tasks}
    start = partial(over_ssh, tasks, ssh, given.python)
    return Job(f"hosts of {file}, over ssh", nodes, hostip, port, (), start)


def _agent(given: DoctorSettings, *names: str) -> list[str]:
    command = [given.python, "-m", "sage.cluster.doctor.agent", f"--runs={given.runs}"]
    command += [f"--timeout={given.timeout:g}", f"--mark={secrets.token_hex(4)}"]
    return [*command, *(f"--name={name}" for name in names)]


def _environment(given: DoctorSettings, hostip: str, port: int, keep: str = "") -> dict[str, str]:
    """The environment of agents; of launchers' variables only those remain that begin with `keep`."""
    inherited = clean_environment(os.environ)
    if keep:
        inherited |= {name: value for name, value in os.environ.items() if name.startswith(keep)}
    meeting = {"hostip": hostip, "port": str(port), SECRET: secrets.token_hex(16)}
    return {**inherited, **forwarded_environment(), **_interface(given), **meeting}


def _interface(given: DoctorSettings) -> dict[str, str]:
    return {GLOO: given.interface, NCCL: f"={given.interface}"} if given.interface else {}


def _output_of(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """The output of one of SLURM's commands."""
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
        raise StartError(
            f"{command[0]}: {clean_text(last)}", "this job", f"try `{shlex.join(command)}`"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(str(error), "this job", f"try `{shlex.join(command)}`") from error
