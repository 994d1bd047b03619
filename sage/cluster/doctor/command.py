"""`sage doctor`: examine the nodes of a job before it starts, and say what is wrong with which, and the cure.

    sage doctor                          in an sbatch script or in salloc: the job's own nodes, through srun
    sage doctor --hosts hosts.txt        the hosts of a file, over ssh
    sage doctor                          elsewhere: this machine alone

On each node an agent runs for each rank that the job would have, with this Python and this checkout. The exit
status is 0 where all is well, 1 where something failed, 2 where it was asked wrongly.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage.cli.parser import Parser
from sage.cluster import launch
from sage.cluster.doctor import agents
from sage.cluster.doctor.checks import judge
from sage.cluster.doctor.findings import Finding, Seen
from sage.cluster.signals import leaving_in_order
from sage.comm.address import GLOO, NCCL
from sage.comm.launchers import MOST_LOCAL
from sage.output.text import clean_text

MOST_SECONDS = 3600.0

STYLES = {"ok": "", "note": "yellow", "failed": "bold red"}


def main(argv: Sequence[str]) -> int:
    """Examine, print the table, and return the exit status.

    Raises:
        ValueError: where the options or the hosts file are wrong.
    """
    given = _parse(argv)
    with leaving_in_order():
        return _examine(given)


def _examine(given: argparse.Namespace) -> int:
    try:
        job = agents.job(given)
        _say(given, f"examining {job.how}, ranks: {len(job.nodes)}")
        facts, besides = agents.listen(job, given.timeout)
    except agents.NotReached as error:
        findings = [Finding("failed", "start", error.where, clean_text(str(error)), error.fix)]
        seen, besides = None, list[str]()
    else:
        seen = Seen(facts, job.nodes, job.hostip, job.port, job.names)
        findings = judge(seen)
    failed = [finding for finding in findings if finding.status == "failed"]
    if given.json:
        facts_by_rank = seen.facts if seen else {}
        print(json.dumps({"well": not failed, "findings": [*map(asdict, findings)], "facts": facts_by_rank}))
    else:
        _show(findings)
        if any(finding.check == "agent" for finding in failed) and besides:
            print("\nSaid besides:\n" + "\n".join(besides))
        print(f"\n{len(failed) or 'nothing'} failed")
    return 1 if failed else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="sage doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    launch.add_arguments(parser)
    parser.add_argument(
        "--ranks-per-host",
        type=int,
        default=1,
        metavar="K",
        help="with --hosts, where slots=N is not given (default: 1)",
    )
    parser.add_argument("--ranks", type=int, default=2, help="on this machine alone (default: 2)")
    parser.add_argument("--hostip", help="rank 0's address or name (default: as the job would choose it)")
    parser.add_argument("--port", type=int, help="a port there (default: one that is free)")
    parser.add_argument("--interface", help=f"sets {GLOO} and {NCCL}, each in its own syntax")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="the folder that all nodes should share (default: runs)",
    )
    parser.add_argument(
        "--timeout", type=float, default=15.0, metavar="SECONDS", help="that one step may take (default: 15)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: well, findings, facts by rank"
    )
    given = parser.parse_args(argv)
    if not 1 <= given.ranks <= MOST_LOCAL:
        raise ValueError(f"--ranks {given.ranks}: expected 1 to {MOST_LOCAL}")
    if not 1 <= given.timeout <= MOST_SECONDS:
        raise ValueError(f"--timeout {given.timeout:g}: expected 1 to {MOST_SECONDS:g}")
    launch.check_hosts(given)
    launch.ssh_words(given.ssh)
    if given.interface is not None and not re.fullmatch(r"[!-~]{1,15}", given.interface):
        shown = clean_text(given.interface, 40)
        raise ValueError(f"--interface {shown!r}: expected the name of an interface, as eth0")
    if not given.cwd.is_dir():
        raise ValueError(f"--cwd {clean_text(str(given.cwd), 200)}: there is no such folder")
    given.runs = given.runs.expanduser()
    if given.port is not None and not 1 <= given.port <= 65535:
        raise ValueError(f"--port {given.port}: expected 1 to 65535")
    return given


def _say(given: argparse.Namespace, text: str) -> None:
    if not given.json:
        print(text, flush=True)


def _show(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.status:6}  {finding.check}: {finding.where}: {finding.found}")
            if finding.fix:
                print(f"{'':6}  -> {finding.fix}")
        return
    table = Table("check", "node", "found", "fix")
    for finding in findings:
        cells = (finding.check, finding.where, finding.found, finding.fix)
        table.add_row(*map(Text, cells), style=STYLES[finding.status])
    console.print(table)
