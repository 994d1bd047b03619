"""`sage doctor`'s agent: what one rank of a job sees of its node, of the network and of the others.

It runs where the rank would run, told its place in the same way, and prints what it finds, step by step, for
the front to judge. What needs torch comes last, and only where all ranks have met.
"""

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from sage.cluster.doctor import node_facts
from sage.cluster.doctor.link_checks import answer_peers, distances, measure
from sage.cluster.doctor.node_facts import Facts
from sage.cluster.doctor.rendezvous import Guest, Host, Unreachable
from sage.cluster.doctor.reported_facts import fault
from sage.cluster.doctor.shared_folder import Shared
from sage.comm.address import choose_interface
from sage.comm.rendezvous import Place, place

MARK = "sage-doctor"
"""How the lines begin that are for the front."""

IMPORT_SECONDS = 120.0
"""That importing torch may take, from a shared file system that many nodes read at once."""

PIECE = 600
"""Letters of a finding in one line: srun tears what is longer than 1 KB, and mixes several tasks' pieces."""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine, and print what is found."""
    parser = argparse.ArgumentParser(prog="python -m sage.cluster.doctor.agent", description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the folder that the nodes should share")
    parser.add_argument("--timeout", type=float, required=True, help="seconds that one step may take")
    parser.add_argument("--mark", required=True, help="what this examination's agents have in common")
    parser.add_argument("--name", action="append", default=[], help="a name to resolve besides")
    given = parser.parse_args(argv)
    here = place()
    if here is None or not here.secret:
        raise ValueError("no place given: `sage doctor` sets hostip, port, rank, world_size and SAGE_SECRET")
    shared = Shared(given.runs, given.mark, here.rank)
    _Agent(here, given.timeout, shared).examine([here.hostip, *given.name])
    return 0


class _Agent:
    """One rank's examination.

    Args:
        seconds: What one step may take.
    """

    def __init__(self, here: Place, seconds: float, shared: Shared) -> None:
        self._here, self._seconds, self._shared = here, seconds, shared
        self._deadline = time.monotonic() + 2 * seconds
        self._strangers: list[str] = []

    def examine(self, names: list[str]) -> None:
        self._say("node", node_facts.node(self._here))
        self._say("software", node_facts.software())
        self._say("names", node_facts.names(names, self._seconds))
        network = node_facts.network(self._here, self._seconds)
        self._say("network", network)
        choose_interface(self._here.hostip, self._here.port)
        obstacle = self._shared.leave_token()
        try:
            self._meet(network, obstacle)
        except Unreachable as error:
            self._say("meeting", {"error": str(error)})
            self._look_alone(obstacle)
        self._say("end", {"strangers": self._strangers})

    def _meet(self, network: Facts, obstacle: str) -> None:
        here = self._here
        with (
            self._host() as host,
            Guest(here.rank, here.hostip, here.port, here.world_size, self._seconds, here.secret) as guest,
        ):
            try:
                self._with_others(guest, network, obstacle)
            finally:
                if host is not None:
                    self._strangers = host.strangers

    def _host(self) -> AbstractContextManager[Host | None]:
        here = self._here
        if here.rank > 0:
            return nullcontext()
        try:
            return Host(here.hostip, here.port, here.world_size, self._seconds, here.secret)
        except OSError as error:
            raise Unreachable(f"rank 0 cannot open it: {error.strerror}") from error

    def _look_alone(self, obstacle: str) -> None:
        """Look at the folder where not all can be asked: whoever may still come has until the deadline."""
        left = self._deadline - time.monotonic()
        self._say_folder(obstacle, range(self._here.world_size), left / 2)
        time.sleep(max(0.0, self._deadline - time.monotonic()))
        self._shared.remove_token()

    def _say_folder(self, obstacle: str, ranks: Iterable[int], seconds: float) -> None:
        found = {"error": obstacle} if obstacle else {"seen": self._shared.look(ranks, seconds)}
        self._say("folder", {"path": str(self._shared.runs), **found})

    # What takes all of them.

    def _with_others(self, guest: Guest, network: Facts, obstacle: str) -> None:
        with socket.socket() as listener:
            listener.bind(("", 0))
            free_port = listener.getsockname()[1]
        own = {
            "address": network.get("address"),
            "port": answer_peers(self._here.hostip, self._here.secret),
            "free_port": free_port,
            "wrong": network["wrong"],
            "obstacle": obstacle,
        }
        peers = {rank: peer for rank, peer in guest.gather(own).items() if not fault("peer", peer)}
        absent = sorted(set(range(self._here.world_size)) - peers.keys())
        self._say("meeting", {"absent": absent})
        self._say("clock", {"skew": guest.skew})
        if absent:
            self._look_alone(obstacle)
            return
        written = [rank for rank, peer in peers.items() if not peer["obstacle"]]
        self._say_folder(obstacle, written, self._seconds)
        guest.gather("have looked")
        self._shared.remove_token()
        self._say("pairs", self._pairs(guest, peers))
        for rank, peer in sorted(peers.items()):
            if peer["wrong"]:
                self._say("left_out", {"why": f"rank {rank}: {peer['wrong'][0]}"})
                return
        self._say("importing torch", {})
        device = self._device(guest)
        if device:
            self._say("all_reduce", self._all_reduce(device, peers[0]["free_port"]))

    def _pairs(self, guest: Guest, peers: Mapping[int, Any]) -> dict[int, Facts]:
        found = {}
        for distance in distances(self._here.world_size):
            rank = (self._here.rank + distance) % self._here.world_size
            found[rank] = measure(peers[rank]["address"], peers[rank]["port"], self._here.secret)
            guest.gather("done")  # one round at a time, so that links are not shared
        return found

    def _device(self, guest: Guest) -> str | None:
        """Where the all-reduce is to run; None where it cannot."""
        try:
            facts = node_facts.torch_facts(self._here)
        except (ImportError, OSError) as error:
            facts = {"error": str(error)}
        self._say("torch", facts)
        everybody = {
            rank: found
            for rank, found in guest.gather(facts, IMPORT_SECONDS).items()
            if not fault("torch", found)
        }
        for rank in range(self._here.world_size):
            if "error" in everybody.get(rank, {"error": "silent"}):
                self._say("left_out", {"why": f"rank {rank} has no torch to run it with"})
                return None
        uuids = [facts.get("uuid") for facts in everybody.values()]
        # NCCL refuses two ranks on one GPU.
        return "cuda" if None not in uuids and len(set(uuids)) == len(uuids) else "cpu"

    def _all_reduce(self, device: str, port: int) -> Facts:
        import torch

        from sage.comm.probe import probe
        from sage.comm.process import ProcessWire
        from sage.comm.wire import WireError

        if device == "cuda":
            torch.cuda.set_device(self._here.local_rank % torch.cuda.device_count())
        own = torch.device(device)
        try:
            wire = ProcessWire(replace(self._here, port=port), device=own, timeout=self._seconds)
            links = probe(wire, device=own)
            wire.close()
        except WireError as error:
            return {"device": device, "error": str(error)}
        return {"device": device, "links": links}

    def _say(self, step: str, found: Mapping[Any, Any]) -> None:
        text = json.dumps({step: found})
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces, 1):
            # With its end in one piece, as several tasks may write into one pipe.
            print(f"{MARK} {self._here.rank} {number}/{len(pieces)} {piece}\n", end="", flush=True)


if __name__ == "__main__":
    status = main()
    # Where a group is broken, closing it in an orderly way would wait for ranks that will not come.
    sys.stdout.flush()
    os._exit(status)
