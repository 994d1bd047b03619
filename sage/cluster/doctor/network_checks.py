"""Checks of the network: names, addresses, interfaces, ports, links and clocks."""

from statistics import median

from sage.cluster.doctor.findings import Check, Observations, Problem
from sage.cluster.doctor.node_facts import Facts
from sage.comm.address import is_loopback
from sage.output.units import duration

CLOCK_SECONDS = 1.0
"""The allowed deviation of a node's clock from the median, in seconds."""

OPEN = "open these ports between the nodes: {}all in /proc/sys/net/ipv4/ip_local_port_range"


# Names and addresses.


def _own_name(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    own = facts["own"]
    found = facts["names"][own]
    fix = f"map '{_address(observed, rank)} {own}' in /etc/hosts or the DNS, in both directions"
    if "error" in found:
        return Problem(f"its own name, {own}, does not resolve: {found['error']}", fix, "note")
    if observed.are_apart() and all(map(is_loopback, found["addresses"])):
        text = f"{own} is {_listed(found)} on {own} itself, an address that no other node can reach"
        return Problem(text, fix, "note")
    for address, names in facts["back"].items():
        if names and own.partition(".")[0] not in [name.partition(".")[0] for name in names]:
            return Problem(f"{own} is {address}, but {address} is {names[0]}", fix, "note")
    return None


def _head_name(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    for name in dict.fromkeys([observed.head, *observed.names]):
        if name not in facts["names"]:
            continue
        found = facts["names"][name]
        there = _address(observed, 0)
        fix = f"map '{there} {name}' in /etc/hosts or the DNS there, or give --hostip {there}"
        if "error" in found:
            # If all ranks share one network, only the name in use has to resolve.
            if name == observed.head or observed.are_apart():
                return Problem(f"{name} does not resolve: {found['error']}", fix)
        elif observed.is_elsewhere(rank) and any(map(is_loopback, found["addresses"])):
            text = f"{name}, rank 0's node, is {_listed(found)} here, which is this node itself"
            return Problem(text, fix)
        elif rank == 0 and name == observed.head and not _is_own(observed, found["addresses"]):
            text = f"{name} is {_listed(found)}, which no interface of this node has"
            return Problem(text, f"give --hostip {there}, or route that address to this node", "note")
    return None


def _is_own(observed: Observations, addresses: list[str]) -> bool:
    """Whether one of the addresses belongs to rank 0's node."""
    interfaces = observed.of("network").get(0, {}).get("interfaces", {})
    own = {address for found in interfaces.values() for address in found}
    return not own or any(address in own or is_loopback(address) for address in addresses)


def _known(observed: Observations, passed: dict[int, Facts]) -> str:
    return ", ".join(
        name
        if name == (listed := _listed(passed[min(passed)]["names"].get(name, {})))
        else f"{name} is {listed}"
        for name in dict.fromkeys([observed.head, *observed.names])
    )


def _route(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    if "no_route" not in facts:
        return None
    return Problem(
        f"no route to {observed.head}: {facts['no_route']}", f"check `ip route get {observed.head}` there"
    )


def _families(observed: Observations, passed: dict[int, Facts]) -> str:
    shared = [
        name
        for name, key in {"IPv4": "ipv4", "IPv6": "ipv6"}.items()
        if all(facts[key] for facts in passed.values())
    ]
    return f"{' and '.join(shared) or 'neither IPv4 nor IPv6'} beyond loopback"


def _interface(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    up = [name for name, found in facts["interfaces"].items() if not all(map(is_loopback, found))]
    if not up:
        fix = "bring up an interface with an address"
    else:
        best = facts["interface"] if facts.get("interface") in up else up[0]
        fix = f"unset it, or GLOO_SOCKET_IFNAME={best} and NCCL_SOCKET_IFNAME=={best}"
        fix += f" (available: {', '.join(up)})" if len(up) > 1 else ""
    if facts["wrong"]:
        return Problem("; ".join(facts["wrong"]), fix)
    if facts.get("loopback") and observed.are_apart():
        return Problem(f"{facts['interface']} would be used, but it reaches no other node", fix)
    return None


def _interfaces(observed: Observations, passed: dict[int, Facts]) -> str:
    names = sorted({facts["interface"] for facts in passed.values() if "interface" in facts})
    settings = sorted({f"{k}={v}" for facts in passed.values() for k, v in facts["settings"].items()})
    chosen = ", ".join(settings) or "chosen because it has the route to rank 0"
    return f"{', '.join(names) or 'none known'} ({chosen})"


# Links between the nodes.


def _port(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    if "error" not in facts:
        return None
    fixes = {
        "rank 0 cannot": "another program uses it: set another --port, or omit it",
        "another program": "set another --port, or omit it",
        "does not resolve": "see the check of the name above",
        "refused": f"check that {observed.head} is rank 0's node, and that its agent has reported",
    }
    fitting = (fix for start, fix in fixes.items() if facts["error"].startswith(start))
    fix = next(fitting, OPEN.format(f"{observed.port} and "))
    return Problem(f"{observed.head} port {observed.port}: {facts['error']}", fix)


def _answers(observed: Observations, passed: dict[int, Facts]) -> str:
    return f"{observed.head} port {observed.port} answers"


def _pair(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    for peer, found in facts.items():
        if "error" in found:
            text = f"cannot reach rank {peer} on {observed.nodes[int(peer)]}: {found['error']}"
            return Problem(text, OPEN.format(""))
    return None


def _links(observed: Observations, passed: dict[int, Facts]) -> str:
    measured = [
        (found["bits_per_second"], found["alpha_seconds"], observed.nodes[rank], observed.nodes[int(peer)])
        for rank, facts in passed.items()
        for peer, found in facts.items()
    ]
    links = [link for link in measured if link[2] != link[3]] or measured
    if not links:
        return "there is only one rank"
    summaries = [
        f"{what} {_rate(bits)} and {duration(seconds)} ({one} to {other})"
        for what, (bits, seconds, one, other) in {"slowest": min(links), "fastest": max(links)}.items()
    ]
    return "; ".join(summaries)


def _clock(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    ahead = facts["skew"] - _usual_skew(observed)
    if abs(ahead) <= CLOCK_SECONDS:
        return None
    which = "ahead" if ahead > 0 else "behind"
    return Problem(f"its clock is {duration(abs(ahead))} {which}", "run chronyd or another NTP client there")


def _clocks(observed: Observations, passed: dict[int, Facts]) -> str:
    worst = max(abs(facts["skew"] - _usual_skew(observed)) for facts in passed.values())
    return f"within {duration(worst)}"


def _usual_skew(observed: Observations) -> float:
    return median(facts["skew"] for facts in observed.of("clock").values())


def _all_reduce(observed: Observations, rank: int, facts: Facts) -> Problem | None:
    if "error" not in facts:
        return None
    return Problem(facts["error"], "fix the failed checks above, or else set GLOO_SOCKET_IFNAME")


def _sums(observed: Observations, passed: dict[int, Facts]) -> str:
    found = passed[min(passed)]
    links = found["links"] and (
        f": {_rate(found['links']['bits_per_second'])} bus bandwidth, "
        f"{duration(found['links']['alpha_seconds'])} per message"
    )
    return f"of {len(passed)} ranks, {found['device']}{links or ''}"


def _address(observed: Observations, rank: int) -> str:
    """A rank's address if other nodes can use it, else a placeholder."""
    address = observed.of("network").get(rank, {}).get("address", "")
    return "ADDRESS" if not address or is_loopback(address) else str(address)


def _listed(found: Facts) -> str:
    return ", ".join(found.get("addresses", ["unknown"]))


def _rate(bits: float) -> str:
    power = next(power for power in (9, 6, 3, 0) if bits >= 10**power or power == 0)
    return f"{bits / 10**power:.3g} {({9: 'G', 6: 'M', 3: 'k', 0: ''})[power]}bit/s"


NAMES = [
    Check("own name", "names", _own_name, lambda observed, passed: "resolves"),
    Check("rank 0's name", "names", _head_name, _known),
    Check("addresses", "network", _route, _families),
    Check("interface", "network", _interface, _interfaces),
]

LINKS = [
    Check(
        "rank 0's port",
        "meeting",
        _port,
        lambda observed, passed: f"{observed.head} port {observed.port} answers",
    ),
    Check("clock", "clock", _clock, _clocks),
    Check("links", "pairs", _pair, _links),
]

ALL_REDUCE = Check("all-reduce", "all_reduce", _all_reduce, _sums)
