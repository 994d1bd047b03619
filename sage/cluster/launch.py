"""`sage launch`: one run on several hosts, started over ssh from a hosts file.

    sage launch --hosts hosts.txt resnet20-cifar10 --reducer sage --density 0.001

Every rank runs `PYTHON -m sage run ...` in this same folder, or in --cwd, with this same checkout in front:
both are taken to be on a file system that the hosts share. It is told hostip, port, rank, world_size and
local_rank, and of our own variables those that begin with SAGE_, GLOO_, NCCL_, TORCH_ or OMP_.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are handed on to all ranks, which agree on a step, save themselves and
return 75; a second SIGTERM or SIGINT ends them within ten seconds. When one fails, the others have ten
seconds to say what they saw of it, and are then ended. However this process dies, no rank outlives it, as a
host's ranks are ended with the connection to it.

The exit status is 0 where all ranks finished, 75 where the others stopped and saved, 2 where one was asked
wrongly, and else 1; a line names the first that failed.
"""

import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sage.cluster.hosts import Host, read_hosts
from sage.cluster.remote import Crew, Ended, Said, Task, surroundings
from sage.cluster.settings import Launch, ssh_words
from sage.cluster.signals import leaving_in_order
from sage.comm.rendezvous import SECRET
from sage.comm.spawn import GRACE
from sage.exit_status import FAILED, HOPELESS, INTERRUPTED
from sage.output.text import clean_text, printable

FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def main(given: Launch, arguments: Sequence[str]) -> int:
    """Run `sage run` with these arguments on all hosts, and return one exit status for all ranks.

    Raises:
        ValueError: where the hosts file is wrong, or none is given.
    """
    if given.hosts is None:
        raise ValueError("--hosts is missing: give a hosts file, with a host on each line")
    hosts = read_hosts(given.hosts, given.ranks_per_host)
    ssh = ssh_words(given.ssh)
    try:
        with leaving_in_order():
            port = given.port or port_on(hosts[0].name, ssh=ssh, python=given.python)
    except OSError as error:
        _complain(str(error))
        return FAILED
    command = [given.python, "-m", "sage", "run", *arguments]
    tasks = seat(
        hosts, command, hostip=given.hostip or hosts[0].address, port=port, cwd=str(given.cwd.absolute())
    )
    with Crew(tasks, ssh=ssh, python=given.python) as crew, _signals_handed_on(crew):
        return _follow(crew, crowded={host.name for host in hosts if host.slots > 1})


def port_on(host: str, *, ssh: Sequence[str], python: str) -> int:
    """A port that was free on a host just now.

    Raises:
        OSError: where ssh does not get there, or something else answers; says what ssh says.
    """
    said: list[str] = []
    with Crew([Task(host=host, rank=0, argv=[python, "-c", FREE_PORT])], ssh=ssh, python=python) as crew:
        for event in crew:
            if isinstance(event, Ended) and event.status != 0:
                reason = event.reason or " ".join(said)
                raise OSError(f"{host} could not be asked for a free port: {reason}")
            if isinstance(event, Said) and event.rank == 0:
                said.append(event.text)
    answer = said[-1].strip() if said else "nothing"
    if not (answer.isascii() and answer.isdecimal() and len(answer) < 6 and 1 <= int(answer) <= 65535):
        shown = clean_text(answer, 80)
        raise OSError(f"{host} could not be asked for a free port: {python} answers {shown!r} there")
    return int(answer)


def seat(hosts: Sequence[Host], argv: Sequence[str], *, hostip: str, port: int, cwd: str) -> list[Task]:
    """One task for each slot of each host, which is told its place in the group."""
    slots = [(host.name, local_rank) for host in hosts for local_rank in range(host.slots)]
    meeting = {
        **surroundings(),
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
            env={**meeting, "rank": str(rank), "local_rank": str(local_rank)},
            cwd=cwd,
        )
        for rank, (host, local_rank) in enumerate(slots)
    ]


def _follow(crew: Crew, crowded: set[str]) -> int:
    """Repeat what the ranks say until all have ended; where one fails, see to the end of the others."""
    first: Ended | None = None
    last_words: dict[int | None, str] = {}
    statuses: set[int | None] = set()
    for event in crew:
        if isinstance(event, Said):
            name = f"{event.host} rank {event.rank}" if event.host in crowded else event.host
            text = printable(event.text)
            print(f"{name}: {text}", file=getattr(sys, event.stream), flush=True)
            if text.strip():
                last_words[event.rank] = text
            continue
        statuses.add(event.status)
        if first is None and event.status not in (0, INTERRUPTED):
            first = event
            # Ranks that wait for one that never came could not say more than that.
            crew.end(0.0 if event.status is None else GRACE)
    if first is None:
        return INTERRUPTED if INTERRUPTED in statuses else 0
    _complain(f"rank {first.rank} on {first.host} failed first: {_reason(first, last_words)}")
    return HOPELESS if HOPELESS in statuses else FAILED


def _reason(ended: Ended, last_words: dict[int | None, str]) -> str:
    if ended.status is None:
        return clean_text(ended.reason)
    if ended.status < 0:
        known = -ended.status in set(signal.Signals)
        return f"it was ended by {signal.Signals(-ended.status).name if known else f'signal {-ended.status}'}"
    words = clean_text(last_words.get(ended.rank, ""))
    return f"exit status {ended.status}" + (f": {words}" if words else "")


@contextmanager
def _signals_handed_on(crew: Crew) -> Iterator[None]:
    asked: list[int] = []

    def hand_on(number: int, _: object) -> None:
        crew.signal(number)
        if number in (signal.SIGTERM, signal.SIGINT):
            asked.append(number)
            if len(asked) > 1:  # whoever asks twice does not want to wait for a host that hangs
                crew.end(GRACE)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(text: str) -> None:
    print(f"sage launch: {text}", file=sys.stderr, flush=True)
