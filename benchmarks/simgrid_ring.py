"""Simulates ring all-reduces in SimGrid, to check the closed form of `sage predict` against another program.

    PYTHONPATH=. python benchmarks/simgrid_ring.py > tests/predict/simgrid_ring.json

It needs SimGrid's Python module, version 3.32 (Debian: python3-simgrid) or newer, which the tests do not.
Each rank is a host with a link of its own to the next rank, sends a block of S/W bytes to it and waits for
that of the previous rank, 2(W−1) times. Large rings take long: the number of messages grows as W².
"""

import json
import subprocess
import sys

from simgrid import (  # pyright: ignore[reportMissingImports]
    Actor,
    Comm,
    Engine,
    Host,
    LinkInRoute,
    Mailbox,
    NetZone,
    simgrid_version,
)

SIZE, BYTES_PER_SECOND, LATENCY = 44_700_000, 125e6, 50e-6

CASES = [(8, 1.0), (16, 1.0), (16, 0.5), (32, 1.0), (64, 1.0), (256, 1.0)]
"""Ranks, and the bandwidth of the first link relative to the others."""


def rank(number: int, ranks: int) -> None:
    """Send a block to the next rank and receive one from the previous rank, in each step."""
    for _ in range(2 * (ranks - 1)):
        sent = Mailbox.by_name(str((number + 1) % ranks)).put_async("block", SIZE // ranks)
        received = Mailbox.by_name(str(number)).get_async()
        Comm.wait_all([sent, received if isinstance(received, Comm) else received[0]])


def simulate(ranks: int, slowest: float) -> float:
    """Return the simulated seconds of an all-reduce."""
    engine = Engine(["simgrid_ring", "--log=root.thres:error", "--cfg=network/model:CM02",
                     "--cfg=network/crosstraffic:0", "--cfg=network/TCP-gamma:0"])  # fmt: skip
    zone = NetZone.create_full_zone("ring")
    hosts = [zone.create_host(f"host{i}", 1e9) for i in range(ranks)]
    for i, host in enumerate(hosts):
        bandwidth = BYTES_PER_SECOND * (slowest if i == 0 else 1.0)
        link = zone.create_link(f"link{i}", bandwidth).set_latency(LATENCY).seal()
        to = hosts[(i + 1) % ranks].netpoint
        zone.add_route(host.netpoint, to, None, None, [LinkInRoute(link)], False)
    zone.seal()
    for i in range(ranks):
        Actor.create(f"rank{i}", Host.by_name(f"host{i}"), rank, i, ranks)
    engine.run()
    return float(engine.clock)


def main() -> None:
    """Print the figures as JSON; each simulation runs in a process of its own, as SimGrid requires."""
    rows = [
        {
            "ranks": ranks,
            "slowest_link": slowest,
            "seconds": float(
                subprocess.check_output([sys.executable, __file__, str(ranks), str(slowest)], text=True)
            ),
        }
        for ranks, slowest in CASES
    ]
    seconds = {
        "script": "benchmarks/simgrid_ring.py",
        "simgrid": simgrid_version,
        "bytes": SIZE,
        "bytes_per_second": BYTES_PER_SECOND,
        "latency_seconds": LATENCY,
        "rows": rows,
    }
    print(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(simulate(int(sys.argv[1]), float(sys.argv[2])))
    else:
        main()
