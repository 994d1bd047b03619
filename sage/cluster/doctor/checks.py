"""All that `sage doctor` checks, in the order in which a job would fall over it."""

from sage.cluster.doctor.findings import Finding, Seen
from sage.cluster.doctor.network_checks import NAMES, SUMS, WAYS
from sage.cluster.doctor.node_checks import FOLDER, GPUS, SOFTWARE

CHECKS = (*NAMES, *SOFTWARE, FOLDER, *WAYS, GPUS, SUMS)


def judge(seen: Seen) -> list[Finding]:
    """All findings, check by check, and what could not be checked."""
    found = [
        *_silent(seen),
        *_strangers(seen),
        *(finding for check in CHECKS for finding in check.findings(seen)),
    ]
    if left := [check.name for check in CHECKS if not seen.of(check.step)]:
        reasons = sorted({f" ({facts['why']})" for facts in seen.of("left_out").values()})
        said = ", ".join(left) + "".join(reasons)
        fix = "cure what has failed, and examine again"
        found.append(Finding("note", "not examined", seen.where(set(seen.nodes)), said, fix))
    return found


def _strangers(seen: Seen) -> list[Finding]:
    """Who else has connected to rank 0's port meanwhile, in one line however many they were."""
    found = [address for facts in seen.of("end").values() for address in facts.get("strangers", ())]
    if not found:
        return []
    addresses = [*dict.fromkeys(found)]
    who = ", ".join(addresses[:5]) + (", …" if len(addresses) > 5 else "")
    said = f"{len(found)} connections to port {seen.port} that no rank made, from {who}"
    fix = "a port scanner, or another job that was told the same port; they were not answered"
    return [Finding("note", "strangers", seen.where({0}), said, fix)]


def _silent(seen: Seen) -> list[Finding]:
    """Which ranks' agents never came to their end, and how far they came."""
    lost: dict[str, set[int]] = {}
    for rank in sorted(seen.nodes):
        facts = seen.facts.get(rank, {})
        if "garbled" in facts:
            lost.setdefault(f"is not understood: {facts['garbled']['why']}", set()).add(rank)
        elif "end" not in facts:
            how = f"fell silent after the step '{[*facts][-1]}'" if facts else "has not said a word"
            lost.setdefault(how, set()).add(rank)
    fix = "is the node up, and has it this Python and this checkout?"
    return [Finding("failed", "agent", seen.where(ranks), how, fix) for how, ranks in lost.items()]
