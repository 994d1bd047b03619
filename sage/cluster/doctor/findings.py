"""From the facts of many ranks to the lines of one table: who passes a check, who does not, and the fix."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sage.cluster.doctor.node_facts import Facts

Status = Literal["ok", "note", "failed"]
"""A note is what does not stop a run of ours, but may slow it or stop something else."""


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    status: Status
    check: str
    where: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Complaint:
    """What a check has against one rank. Ranks with the same complaint share a line."""

    found: str
    fix: str
    status: Status = "failed"


@dataclass(frozen=True)
class Seen:
    """What all agents have said."""

    facts: Mapping[int, Facts]
    """By rank and step."""
    nodes: Mapping[int, str]
    """Every rank's node, also of those that have said nothing."""
    head: str
    """Rank 0's address or name, as the ranks were told."""
    port: int
    """Where they meet."""
    names: tuple[str, ...] = field(default=())
    """Other names by which the ranks should know rank 0's node."""

    def of(self, step: str) -> dict[int, Facts]:
        """A step's facts, by rank, of the ranks that came so far."""
        return {rank: facts[step] for rank, facts in sorted(self.facts.items()) if step in facts}

    def is_elsewhere(self, rank: int) -> bool:
        """Whether a rank has to leave its own network to reach rank 0."""
        node = self.of("node")
        return rank in node and 0 in node and node[rank]["network"] != node[0]["network"]

    def are_apart(self) -> bool:
        """Whether loopback does not lead to everybody."""
        return any(map(self.is_elsewhere, self.facts))

    def where(self, ranks: set[int]) -> str:
        """Those ranks' nodes, and the rank where not all of a node's are meant."""
        if ranks == set(self.nodes) and len(set(self.nodes.values())) > 1:
            return "all nodes"
        labels = []
        for node in dict.fromkeys(self.nodes[rank] for rank in sorted(ranks)):
            there = {rank for rank, its_node in self.nodes.items() if its_node == node}
            meant = ", ".join(map(str, sorted(there & ranks)))
            labels.append(node if there <= ranks else f"{node} (rank {meant})")
        return ", ".join(labels)


@dataclass(frozen=True)
class Check:
    """One thing that is checked, for each rank that came so far."""

    name: str
    step: str
    """Whose facts it looks at."""
    complain: Callable[[Seen, int, Facts], Complaint | None]
    """What is wrong with one rank."""
    summary: Callable[[Seen, dict[int, Facts]], str]
    """What is to be said of those with which nothing is."""

    def findings(self, seen: Seen) -> Iterator[Finding]:
        """A line for each complaint, and one for those that pass."""
        complaining: defaultdict[Complaint, set[int]] = defaultdict(set)
        passing: dict[int, Facts] = {}
        for rank, facts in seen.of(self.step).items():
            complaint = self.complain(seen, rank, facts)
            if complaint:
                complaining[complaint].add(rank)
            else:
                passing[rank] = facts
        for complaint, ranks in complaining.items():
            yield Finding(complaint.status, self.name, seen.where(ranks), complaint.found, complaint.fix)
        if passing:
            yield Finding("ok", self.name, seen.where(set(passing)), self.summary(seen, passing))
