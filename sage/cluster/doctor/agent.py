"""`sage doctor`'s agent: collects the facts of one rank's node, network and links to the other ranks.

It runs where the rank would run, gets its place by the same variables, and prints its facts step by step;
`sage doctor` evaluates them. Steps that need torch come last, and only if all ranks are at the rendezvous.
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
from sage.cluster.doctor.link_checks import distances, measure, serve_measurements
from sage.cluster.doctor.node_facts import Facts
from sage.cluster.doctor.rendezvous import RendezvousClient, RendezvousServer, Unreachable
from sage.cluster.doctor.reported_facts import fault
from sage.cluster.doctor.shared_folder import SharedFolder
from sage.comm.address import choose_interface
from sage.comm.rendezvous import Place, place

MARK = "sage-doctor"
"""Prefix of an agent's report lines."""

IMPORT_SECONDS = 120.0
"""Time limit for importing torch, from a shared file system that many nodes read at the same time."""

PIECE = 600
"""Characters of a report in one line: srun splits lines over 1 KB, and interleaves the tasks' parts."""


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the facts, and print them."""
    parser = argparse.ArgumentParser(prog="python -m sage.cluster.doctor.agent", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, required=True, help="the runs folder, which all nodes should share"
    )
    parser.add_argument("--timeout", type=float, required=True, help="time limit of a step in seconds")
    parser.add_argument("--mark", required=True, help="a text common to this check's agents")
    parser.add_argument("--name", action="append", default=[], help="another name to resolve")
    given = parser.parse_args(argv)
    here = place()
    if here is None or not here.secret:
        raise ValueError(
            "start it by `sage doctor`, which sets hostip, port, rank, world_size and SAGE_SECRET"
        )
    shared = SharedFolder(given.runs, given.mark, here.rank)
    _Agent(here, given.timeout, shared).report([here.hostip, *given.name])
    return 0


class _Agent:
    """One rank's report.

    Args:
        here: The rank's place in the group.
        seconds: Time limit of a step.
        shared: The check of the runs folder.
    """

    def __init__(self, here: Place, seconds: float, shared: SharedFolder) -> None:
        self._here, self._seconds, self._shared = here, seconds, shared
        self._deadline = time.monotonic() + 2 * seconds
        self._rejected: list[str] = []

    def report(self, names: list[str]) -> None:
        self._send("node", node_facts.node(self._here))
        self._send("software", node_facts.software())
        self._send("names", node_facts.names(names, self._seconds))
        network = node_facts.network(self._here, self._seconds)
        self._send("network", network)
        choose_interface(self._here.hostip, self._here.port)
        obstacle = self._shared.write_token()
        try:
            self._join(network, obstacle)
        except Unreachable as error:
            self._send("meeting", {"error": str(error)})
            self._check_folder_alone(obstacle)
        self._send("end", {"strangers": self._rejected})

    def _join(self, network: Facts, obstacle: str) -> None:
        here = self._here
        with (
            self._server() as server,
            RendezvousClient(
                here.rank, here.hostip, here.port, here.world_size, self._seconds, here.secret
            ) as client,
        ):
            try:
                self._with_others(client, network, obstacle)
            finally:
                if server is not None:
                    self._rejected = server.rejected

    def _server(self) -> AbstractContextManager[RendezvousServer | None]:
        here = self._here
        if here.rank > 0:
            return nullcontext()
        try:
            return RendezvousServer(here.hostip, here.port, here.world_size, self._seconds, here.secret)
        except OSError as error:
            raise Unreachable(f"rank 0 cannot open it: {error.strerror}") from error

    def _check_folder_alone(self, obstacle: str) -> None:
        """Check the runs folder without a rendezvous of all ranks: wait for late ranks until the deadline."""
        left = self._deadline - time.monotonic()
        self._send_folder(obstacle, range(self._here.world_size), left / 2)
        time.sleep(max(0.0, self._deadline - time.monotonic()))
        self._shared.remove_token()

    def _send_folder(self, obstacle: str, ranks: Iterable[int], seconds: float) -> None:
        found = {"error": obstacle} if obstacle else {"seen": self._shared.visible_ranks(ranks, seconds)}
        self._send("folder", {"path": str(self._shared.runs), **found})

    # Steps that need all ranks.

    def _with_others(self, client: RendezvousClient, network: Facts, obstacle: str) -> None:
        with socket.socket() as listener:
            listener.bind(("", 0))
            free_port = listener.getsockname()[1]
        own = {
            "address": network.get("address"),
            "port": serve_measurements(self._here.hostip, self._here.secret),
            "free_port": free_port,
            "wrong": network["wrong"],
            "obstacle": obstacle,
        }
        peers = {rank: peer for rank, peer in client.gather(own).items() if not fault("peer", peer)}
        absent = sorted(set(range(self._here.world_size)) - peers.keys())
        self._send("meeting", {"absent": absent})
        self._send("clock", {"skew": client.skew})
        if absent:
            self._check_folder_alone(obstacle)
            return
        written = [rank for rank, peer in peers.items() if not peer["obstacle"]]
        self._send_folder(obstacle, written, self._seconds)
        client.gather("folder checked")
        self._shared.remove_token()
        self._send("pairs", self._pairs(client, peers))
        for rank, peer in sorted(peers.items()):
            if peer["wrong"]:
                self._send("left_out", {"why": f"rank {rank}: {peer['wrong'][0]}"})
                return
        self._send("importing torch", {})
        device = self._device(client)
        if device:
            self._send("all_reduce", self._all_reduce(device, peers[0]["free_port"]))

    def _pairs(self, client: RendezvousClient, peers: Mapping[int, Any]) -> dict[int, Facts]:
        found = {}
        for distance in distances(self._here.world_size):
            rank = (self._here.rank + distance) % self._here.world_size
            found[rank] = measure(peers[rank]["address"], peers[rank]["port"], self._here.secret)
            client.gather("done")  # rounds are synchronised, so that measurements do not share links
        return found

    def _device(self, client: RendezvousClient) -> str | None:
        """The device of the all-reduce; None if it cannot run."""
        try:
            facts = node_facts.torch_facts(self._here)
        except (ImportError, OSError) as error:
            facts = {"error": str(error)}
        self._send("torch", facts)
        all_facts = {
            rank: found
            for rank, found in client.gather(facts, IMPORT_SECONDS).items()
            if not fault("torch", found)
        }
        for rank in range(self._here.world_size):
            if "error" in all_facts.get(rank, {"error": "missing"}):
                self._send("left_out", {"why": f"rank {rank} has no working torch"})
                return None
        uuids = [facts.get("uuid") for facts in all_facts.values()]
        # NCCL does not support two ranks on one GPU.
        return "cuda" if None not in uuids and len(set(uuids)) == len(uuids) else "cpu"

    def _all_reduce(self, device: str, port: int) -> Facts:
        import torch

        from sage.comm.probe import probe
        from sage.comm.process import ProcessWire
        from sage.comm.transport import WireError

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

    def _send(self, step: str, found: Mapping[Any, Any]) -> None:
        text = json.dumps({step: found})
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces, 1):
            # One write with the newline, because several tasks may write to one pipe.
            print(f"{MARK} {self._here.rank} {number}/{len(pieces)} {piece}\n", end="", flush=True)


if __name__ == "__main__":
    status = main()
    # A regular exit would close the process group and, if it is broken, wait for ranks that are gone.
    sys.stdout.flush()
    os._exit(status)
