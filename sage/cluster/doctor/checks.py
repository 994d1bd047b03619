"""All checks of `sage doctor`, in the order in which their faults would stop a job."""

from sage.cluster.doctor.findings import Finding, Observations
from sage.cluster.doctor.network_checks import ALL_REDUCE, LINKS, NAMES
from sage.cluster.doctor.node_checks import FOLDER, GPUS, SOFTWARE

CHECKS = (*NAMES, *SOFTWARE, FOLDER, *LINKS, GPUS, ALL_REDUCE)


def check_all(observed: Observations) -> list[Finding]:
    """The findings of all checks, and one that names the checks that could not be made."""
    found = [
        *_incomplete(observed),
        *_unauthenticated(observed),
        *(finding for check in CHECKS for finding in check.findings(observed)),
    ]
    if left := [check.name for check in CHECKS if not observed.of(check.step)]:
        reasons = sorted({f" ({facts['why']})" for facts in observed.of("left_out").values()})
        names = ", ".join(left) + "".join(reasons)
        fix = "fix the failed checks, and run sage doctor again"
        found.append(Finding("note", "not examined", observed.where(set(observed.nodes)), names, fix))
    return found


def _unauthenticated(observed: Observations) -> list[Finding]:
    """One finding on all connections to rank 0's port that were not from a rank."""
    found = [address for facts in observed.of("end").values() for address in facts.get("strangers", ())]
    if not found:
        return []
    addresses = [*dict.fromkeys(found)]
    sources = ", ".join(addresses[:5]) + (", …" if len(addresses) > 5 else "")
    text = f"{len(found)} connections to port {observed.port} that are not from a rank, from {sources}"
    fix = "a port scanner, or another job with the same port; the connections were closed without an answer"
    return [Finding("note", "unauthenticated", observed.where({0}), text, fix)]


def _incomplete(observed: Observations) -> list[Finding]:
    """Findings on the ranks whose agents did not complete their report, with the last step of each."""
    lost: dict[str, set[int]] = {}
    for rank in sorted(observed.nodes):
        facts = observed.facts.get(rank, {})
        if "garbled" in facts:
            lost.setdefault(f"sent an invalid report: {facts['garbled']['why']}", set()).add(rank)
        elif "end" not in facts:
            how = f"stopped reporting after the step '{[*facts][-1]}'" if facts else "sent no report"
            lost.setdefault(how, set()).add(rank)
    fix = "check that the node is up and has this Python and this checkout"
    return [Finding("failed", "agent", observed.where(ranks), how, fix) for how, ranks in lost.items()]
