"""`sage doctor`: check the nodes and the network of a job before it starts; reports faults, nodes and fixes.

    sage doctor                          in an sbatch script or in salloc: the job's nodes, through srun
    sage doctor --hosts hosts.txt        the hosts of a file, over ssh
    sage doctor                          elsewhere: this machine only

For each rank of the job, an agent runs on the rank's node, with this Python and this checkout. The exit
status is 0 if no check failed, 1 if a check failed, and 2 for invalid arguments.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage.cluster.doctor import agents
from sage.cluster.doctor.checks import check_all
from sage.cluster.doctor.findings import Finding, Observations
from sage.cluster.settings import DoctorSettings
from sage.cluster.signals import exit_on_signals
from sage.output.text import clean_text

STYLES = {"ok": "", "note": "yellow", "failed": "bold red"}


def main(given: DoctorSettings, *, as_json: bool = False) -> int:
    """Check the nodes, print the table or one JSON object, and return the exit status.

    Raises:
        ValueError: The hosts file or SLURM's variables are invalid.
    """
    with exit_on_signals():
        return _check(given, as_json)


def _check(given: DoctorSettings, as_json: bool) -> int:
    try:
        job = agents.job(given)
        if not as_json:
            print(f"checking {job.how}, ranks: {len(job.nodes)}", flush=True)
        facts, other_lines = agents.collect_reports(job, given.timeout)
    except agents.StartError as error:
        findings = [Finding("failed", "start", error.where, clean_text(str(error)), error.fix)]
        observed, other_lines = None, list[str]()
    else:
        observed = Observations(facts, job.nodes, job.hostip, job.port, job.names)
        findings = check_all(observed)
    failed = [finding for finding in findings if finding.status == "failed"]
    if as_json:
        facts_by_rank = observed.facts if observed else {}
        print(json.dumps({"well": not failed, "findings": [*map(asdict, findings)], "facts": facts_by_rank}))
    else:
        _show(findings)
        if any(finding.check == "agent" for finding in failed) and other_lines:
            print("\nOther output:\n" + "\n".join(other_lines))
        print(f"\n{len(failed) or 'no'} check{'' if len(failed) == 1 else 's'} failed")
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
