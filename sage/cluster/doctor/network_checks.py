"""Checks of what lies between the nodes: names, addresses, interfaces, ports, links and clocks."""

from statistics import median

from sage.cluster.doctor.findings import Check, Complaint, Seen
from sage.cluster.doctor.node_facts import Facts
from sage.comm.address import is_loopback
from sage.output.units import duration

CLOCK_SECONDS = 1.0
"""How far from the others' a node's clock may be."""

OPEN = "let the nodes reach each other's ports, {}all those in /proc/sys/net/ipv4/ip_local_port_range"


# Names and addresses.


def _own_name(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    own = facts["own"]
    found = facts["names"][own]
    fix = f"have /etc/hosts or the DNS say '{_address(seen, rank)} {own}', both ways"
    if "error" in found:
        return Complaint(f"its own name, {own}, does not resolve: {found['error']}", fix, "note")
    if seen.are_apart() and all(map(is_loopback, found["addresses"])):
        said = f"{own} is {_listed(found)} on {own} itself, where no other node finds it"
        return Complaint(said, fix, "note")
    for address, names in facts["back"].items():
        if names and own.partition(".")[0] not in [name.partition(".")[0] for name in names]:
            return Complaint(f"{own} is {address}, but {address} is {names[0]}", fix, "note")
    return None


def _head_name(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    for name in dict.fromkeys([seen.head, *seen.names]):
        if name not in facts["names"]:
            continue
        found = facts["names"][name]
        there = _address(seen, 0)
        fix = f"have /etc/hosts or the DNS there say '{there} {name}', or go by --hostip {there}"
        if "error" in found:
            # Where all ranks share one network, only the name that they go by has to resolve.
            if name == seen.head or seen.are_apart():
                return Complaint(f"{name} does not resolve: {found['error']}", fix)
        elif seen.is_elsewhere(rank) and any(map(is_loopback, found["addresses"])):
            said = f"{name}, rank 0's node, is {_listed(found)} here, where this node finds itself"
            return Complaint(said, fix)
        elif rank == 0 and name == seen.head and not _is_own(seen, found["addresses"]):
            said = f"{name} is {_listed(found)}, which no interface of this node has"
            return Complaint(said, f"go by --hostip {there}, or have that address led here", "note")
    return None


def _is_own(seen: Seen, addresses: list[str]) -> bool:
    """Whether one of the addresses is rank 0's."""
    interfaces = seen.of("network").get(0, {}).get("interfaces", {})
    own = {address for found in interfaces.values() for address in found}
    return not own or any(address in own or is_loopback(address) for address in addresses)


def _known(seen: Seen, passing: dict[int, Facts]) -> str:
    return ", ".join(
        name
        if name == (listed := _listed(passing[min(passing)]["names"].get(name, {})))
        else f"{name} is {listed}"
        for name in dict.fromkeys([seen.head, *seen.names])
    )


def _route(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    if "no_route" not in facts:
        return None
    return Complaint(f"no way to {seen.head}: {facts['no_route']}", f"see `ip route get {seen.head}` there")


def _families(seen: Seen, passing: dict[int, Facts]) -> str:
    shared = [
        name
        for name, key in {"IPv4": "ipv4", "IPv6": "ipv6"}.items()
        if all(facts[key] for facts in passing.values())
    ]
    return f"{' and '.join(shared) or 'neither IPv4 nor IPv6'} beyond loopback"


def _interface(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    up = [name for name, found in facts["interfaces"].items() if not all(map(is_loopback, found))]
    if not up:
        fix = "bring up an interface that has an address"
    else:
        best = facts["interface"] if facts.get("interface") in up else up[0]
        fix = f"unset it, or GLOO_SOCKET_IFNAME={best} and NCCL_SOCKET_IFNAME=={best}"
        fix += f" (there are {', '.join(up)})" if len(up) > 1 else ""
    if facts["wrong"]:
        return Complaint("; ".join(facts["wrong"]), fix)
    if facts.get("loopback") and seen.are_apart():
        return Complaint(f"{facts['interface']} would be used, which reaches no other node", fix)
    return None


def _interfaces(seen: Seen, passing: dict[int, Facts]) -> str:
    names = sorted({facts["interface"] for facts in passing.values() if "interface" in facts})
    settings = sorted({f"{k}={v}" for facts in passing.values() for k, v in facts["settings"].items()})
    return f"{', '.join(names) or 'none known'} ({', '.join(settings) or 'chosen as it leads to rank 0'})"


# What lies between the nodes.


def _port(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    if "error" not in facts:
        return None
    fixes = {
        "rank 0 cannot": "another program has it: give another as --port, or none",
        "something else": "give another as --port, or none",
        "does not resolve": "see the name above",
        "refused": f"does {seen.head} lead to rank 0's node, and has its agent come so far?",
    }
    fitting = (fix for start, fix in fixes.items() if facts["error"].startswith(start))
    fix = next(fitting, OPEN.format(f"{seen.port} and "))
    return Complaint(f"{seen.head} port {seen.port}: {facts['error']}", fix)


def _pair(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    for peer, found in facts.items():
        if "error" in found:
            said = f"cannot reach rank {peer} on {seen.nodes[int(peer)]}: {found['error']}"
            return Complaint(said, OPEN.format(""))
    return None


def _links(seen: Seen, passing: dict[int, Facts]) -> str:
    measured = [
        (found["bits_per_second"], found["alpha_seconds"], seen.nodes[rank], seen.nodes[int(peer)])
        for rank, facts in passing.items()
        for peer, found in facts.items()
    ]
    links = [link for link in measured if link[2] != link[3]] or measured
    if not links:
        return "there is one rank only"
    told = [
        f"{what} {_rate(bits)} and {duration(seconds)} ({one} to {other})"
        for what, (bits, seconds, one, other) in {"slowest": min(links), "fastest": max(links)}.items()
    ]
    return "; ".join(told)


def _clock(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    ahead = facts["skew"] - _usual_skew(seen)
    if abs(ahead) <= CLOCK_SECONDS:
        return None
    which = "ahead" if ahead > 0 else "behind"
    return Complaint(f"its clock is {duration(abs(ahead))} {which}", "run chronyd or another NTP there")


def _clocks(seen: Seen, passing: dict[int, Facts]) -> str:
    worst = max(abs(facts["skew"] - _usual_skew(seen)) for facts in passing.values())
    return f"within {duration(worst)}"


def _usual_skew(seen: Seen) -> float:
    return median(facts["skew"] for facts in seen.of("clock").values())


def _all_reduce(seen: Seen, rank: int, facts: Facts) -> Complaint | None:
    if "error" not in facts:
        return None
    return Complaint(facts["error"], "cure what failed above; else set GLOO_SOCKET_IFNAME by hand")


def _sums(seen: Seen, passing: dict[int, Facts]) -> str:
    found = passing[min(passing)]
    links = found["links"] and (
        f": {_rate(found['links']['bits_per_second'])} bus bandwidth, "
        f"{duration(found['links']['alpha_seconds'])} a message"
    )
    return f"of {len(passing)} ranks, {found['device']}{links or ''}"


def _address(seen: Seen, rank: int) -> str:
    """A rank's address, as far as it is one for others."""
    address = seen.of("network").get(rank, {}).get("address", "")
    return "ADDRESS" if not address or is_loopback(address) else str(address)


def _listed(found: Facts) -> str:
    return ", ".join(found.get("addresses", ["not known"]))


def _rate(bits: float) -> str:
    power = next(power for power in (9, 6, 3, 0) if bits >= 10**power or power == 0)
    return f"{bits / 10**power:.3g} {({9: 'G', 6: 'M', 3: 'k', 0: ''})[power]}bit/s"


NAMES = [
    Check("own name", "names", _own_name, lambda seen, passing: "resolves"),
    Check("rank 0's name", "names", _head_name, _known),
    Check("addresses", "network", _route, _families),
    Check("interface", "network", _interface, _interfaces),
]

WAYS = [
    Check("rank 0's port", "meeting", _port, lambda seen, passing: f"{seen.head} port {seen.port} answers"),
    Check("clock", "clock", _clock, _clocks),
    Check("links", "pairs", _pair, _links),
]

SUMS = Check("all-reduce", "all_reduce", _all_reduce, _sums)
