"""`sage launch`: start one run on several hosts over ssh, from a hosts file.

    sage launch --hosts hosts.txt resnet20-cifar10 --reducer sage --density 0.001

Every rank runs `PYTHON -m sage run ...` in this folder, or in --cwd, with this checkout first on its path;
both must be on a file system that the hosts share. Each rank gets the variables hostip, port, rank,
world_size and local_rank, and this process's variables that begin with SAGE_, GLOO_, NCCL_, TORCH_ or OMP_.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are forwarded to all ranks, which agree on a step, write a checkpoint and
exit with status 75; a second SIGTERM or SIGINT ends them within ten seconds. If a rank fails, the others have
ten seconds to report the failure, and are then ended. However this process ends, its ranks
end too, because a host ends its ranks when the connection to it closes.

The exit status is 0 if all ranks finished, 75 if all others stopped with a checkpoint, 2 if a rank has
invalid settings, and otherwise 1; a line names the first rank that failed.
"""

import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sage.cluster.environment import forwarded_environment
from sage.cluster.hosts import Host, read_hosts
from sage.cluster.remote import Ended, Output, RemoteTasks, Task
from sage.cluster.settings import Launch, ssh_words
from sage.cluster.signals import exit_on_signals
from sage.comm.rendezvous import SECRET
from sage.comm.spawn import GRACE
from sage.exit_status import FAILED, FATAL, INTERRUPTED
from sage.output.text import clean_text, printable

FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def main(given: Launch, arguments: Sequence[str]) -> int:
    """Run `sage run` or `sage advise` on all hosts; returns one exit status for all ranks.

    Raises:
        ValueError: The hosts file is invalid or missing.
    """
    if given.hosts is None:
        raise ValueError("--hosts is missing: give a hosts file, with a host on each line")
    hosts = read_hosts(given.hosts, given.ranks_per_host)
    ssh = ssh_words(given.ssh)
    try:
        with exit_on_signals():
            port = given.port or port_on(hosts[0].name, ssh=ssh, python=given.python)
    except OSError as error:
        _print_error(str(error))
        return FAILED
    command = [given.python, "-m", "sage", "advise" if given.advise else "run", *arguments]
    tasks = assign_ranks(
        hosts, command, hostip=given.hostip or hosts[0].address, port=port, cwd=str(given.cwd.absolute())
    )
    with RemoteTasks(tasks, ssh=ssh, python=given.python) as remote, _forward_signals(remote):
        return _follow(remote, crowded={host.name for host in hosts if host.slots > 1})


def port_on(host: str, *, ssh: Sequence[str], python: str) -> int:
    """A port that is free on a host.

    Raises:
        OSError: ssh cannot connect, or the answer is not a port; the message has ssh's error.
    """
    output: list[str] = []
    with RemoteTasks(
        [Task(host=host, rank=0, argv=[python, "-c", FREE_PORT])], ssh=ssh, python=python
    ) as remote:
        for event in remote:
            if isinstance(event, Ended) and event.status != 0:
                reason = event.reason or " ".join(output)
                raise OSError(f"cannot find a free port on {host}: {reason}")
            if isinstance(event, Output) and event.rank == 0:
                output.append(event.text)
    answer = output[-1].strip() if output else "nothing"
    if not (answer.isascii() and answer.isdecimal() and len(answer) < 6 and 1 <= int(answer) <= 65535):
        shown = clean_text(answer, 80)
        raise OSError(f"cannot find a free port on {host}: {python} printed {shown!r} there")
    return int(answer)


def assign_ranks(
    hosts: Sequence[Host], argv: Sequence[str], *, hostip: str, port: int, cwd: str
) -> list[Task]:
    """One task per slot of each host, with its place in the group as environment variables."""
    slots = [(host.name, local_rank) for host in hosts for local_rank in range(host.slots)]
    rendezvous = {
        **forwarded_environment(),
        "hostip": hostip,
        "port": str(port),
        "world_size": str(len(slots)),
        SECRET: secrets.token_hex(16),
    }
    return [
        Task(
            host=host,
            rank=rank,
            argv=argv,
            env={**rendezvous, "rank": str(rank), "local_rank": str(local_rank)},
            cwd=cwd,
        )
        for rank, (host, local_rank) in enumerate(slots)
    ]


def _follow(remote: RemoteTasks, crowded: set[str]) -> int:
    """Print the ranks' output until all have ended; after a failure, end the other ranks."""
    first: Ended | None = None
    last_lines: dict[int | None, str] = {}
    statuses: set[int | None] = set()
    for event in remote:
        if isinstance(event, Output):
            name = f"{event.host} rank {event.rank}" if event.host in crowded else event.host
            text = printable(event.text)
            print(f"{name}: {text}", file=getattr(sys, event.stream), flush=True)
            if text.strip():
                last_lines[event.rank] = text
            continue
        statuses.add(event.status)
        if first is None and event.status not in (0, INTERRUPTED):
            first = event
            # If ssh failed, the other ranks wait for a rank that never started, and need no time to report.
            remote.end(0.0 if event.status is None else GRACE)
    if first is None:
        return INTERRUPTED if INTERRUPTED in statuses else 0
    _print_error(f"rank {first.rank} on {first.host} failed first: {_reason(first, last_lines)}")
    return FATAL if FATAL in statuses else FAILED


def _reason(ended: Ended, last_lines: dict[int | None, str]) -> str:
    if ended.status is None:
        return clean_text(ended.reason)
    if ended.status < 0:
        known = -ended.status in set(signal.Signals)
        return f"ended by {signal.Signals(-ended.status).name if known else f'signal {-ended.status}'}"
    last_line = clean_text(last_lines.get(ended.rank, ""))
    return f"exit status {ended.status}" + (f": {last_line}" if last_line else "")


@contextmanager
def _forward_signals(remote: RemoteTasks) -> Iterator[None]:
    stops: list[int] = []

    def forward(number: int, _: object) -> None:
        remote.signal(number)
        if number in (signal.SIGTERM, signal.SIGINT):
            stops.append(number)
            if len(stops) > 1:  # a second signal: do not wait for a host that hangs
                remote.end(GRACE)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_error(text: str) -> None:
    print(f"sage launch: {text}", file=sys.stderr, flush=True)
