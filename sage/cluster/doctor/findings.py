"""Evaluation of a check: from the facts of all ranks to findings, each with the nodes affected and a fix."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sage.cluster.doctor.node_facts import Facts

Status = Literal["ok", "note", "failed"]
"""`note`: does not stop a run of SAGE, but may slow it down or stop other programs."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    status: Status
    check: str
    where: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Problem:
    """A problem that a check has found on one rank. Ranks with equal problems share a finding."""

    found: str
    fix: str
    status: Status = "failed"


@dataclass(frozen=True)
class Observations:
    """The facts that all agents have reported."""

    facts: Mapping[int, Facts]
    """By rank and step."""
    nodes: Mapping[int, str]
    """Every rank's node, including ranks without a report."""
    head: str
    """Rank 0's address or name, as given to the ranks."""
    port: int
    """The rendezvous port at rank 0."""
    names: tuple[str, ...] = field(default=())
    """Other names of rank 0's node that the ranks should be able to resolve."""

    def of(self, step: str) -> dict[int, Facts]:
        """A step's facts, by rank, of the ranks that have reported it."""
        return {rank: facts[step] for rank, facts in sorted(self.facts.items()) if step in facts}

    def is_elsewhere(self, rank: int) -> bool:
        """Whether a rank is in another network than rank 0."""
        node = self.of("node")
        return rank in node and 0 in node and node[rank]["network"] != node[0]["network"]

    def are_apart(self) -> bool:
        """Whether some rank cannot be reached by loopback."""
        return any(map(self.is_elsewhere, self.facts))

    def where(self, ranks: set[int]) -> str:
        """The nodes of these ranks; the ranks too if they are not all ranks of their node."""
        if ranks == set(self.nodes) and len(set(self.nodes.values())) > 1:
            return "all nodes"
        labels = []
        for node in dict.fromkeys(self.nodes[rank] for rank in sorted(ranks)):
            there = {rank for rank, its_node in self.nodes.items() if its_node == node}
            listed = ", ".join(map(str, sorted(there & ranks)))
            labels.append(node if there <= ranks else f"{node} (rank {listed})")
        return ", ".join(labels)


@dataclass(frozen=True)
class Check:
    """One check, made for each rank that has reported its step."""

    name: str
    step: str
    """The step whose facts are checked."""
    problem: Callable[[Observations, int, Facts], Problem | None]
    """The problem of one rank, or None."""
    summary: Callable[[Observations, dict[int, Facts]], str]
    """The text on the ranks without a problem."""

    def findings(self, observed: Observations) -> Iterator[Finding]:
        """One finding per problem, and one for the ranks that pass."""
        affected: defaultdict[Problem, set[int]] = defaultdict(set)
        passed: dict[int, Facts] = {}
        for rank, facts in observed.of(self.step).items():
            problem = self.problem(observed, rank, facts)
            if problem:
                affected[problem].add(rank)
            else:
                passed[rank] = facts
        for problem, ranks in affected.items():
            yield Finding(problem.status, self.name, observed.where(ranks), problem.found, problem.fix)
        if passed:
            yield Finding("ok", self.name, observed.where(set(passed)), self.summary(observed, passed))
