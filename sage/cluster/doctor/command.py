"""`sage doctor`: examine the nodes of a job before it starts, and say what is wrong with which, and the cure.

    sage doctor                          in an sbatch script or in salloc: the job's own nodes, through srun
    sage doctor --hosts hosts.txt        the hosts of a file, over ssh
    sage doctor                          elsewhere: this machine alone

On each node an agent runs for each rank that the job would have, with this Python and this checkout. The exit
status is 0 where all is well, 1 where something failed, 2 where it was asked wrongly.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage.cluster.doctor import agents
from sage.cluster.doctor.checks import judge
from sage.cluster.doctor.findings import Finding, Seen
from sage.cluster.settings import Examination
from sage.cluster.signals import leaving_in_order
from sage.output.text import clean_text

STYLES = {"ok": "", "note": "yellow", "failed": "bold red"}


def main(given: Examination, *, as_json: bool = False) -> int:
    """Examine, print the table or one JSON object, and return the exit status.

    Raises:
        ValueError: where the hosts file or SLURM's variables are wrong.
    """
    with leaving_in_order():
        return _examine(given, as_json)


def _examine(given: Examination, as_json: bool) -> int:
    try:
        job = agents.job(given)
        if not as_json:
            print(f"examining {job.how}, ranks: {len(job.nodes)}", flush=True)
        facts, besides = agents.listen(job, given.timeout)
    except agents.NotReached as error:
        findings = [Finding("failed", "start", error.where, clean_text(str(error)), error.fix)]
        seen, besides = None, list[str]()
    else:
        seen = Seen(facts, job.nodes, job.hostip, job.port, job.names)
        findings = judge(seen)
    failed = [finding for finding in findings if finding.status == "failed"]
    if as_json:
        facts_by_rank = seen.facts if seen else {}
        print(json.dumps({"well": not failed, "findings": [*map(asdict, findings)], "facts": facts_by_rank}))
    else:
        _show(findings)
        if any(finding.check == "agent" for finding in failed) and besides:
            print("\nSaid besides:\n" + "\n".join(besides))
        print(f"\n{len(failed) or 'nothing'} failed")
    return 1 if failed else 0


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
