"""The facts that an agent of `sage doctor` reports for a healthy node."""

from typing import Any

SOFTWARE = {
    "python": "3.12",
    "sage": "1",
    "torch": "2",
    "numpy": "2",
    "extension": False,
    "gpu_files": 0,
    "visible": None,
}


def facts(rank: int) -> dict[str, Any]:
    """Return the facts of a healthy node that runs only this rank."""
    node, address = f"node{rank + 1}", f"10.0.0.{rank + 1}"
    names = {node: {"addresses": [address]}, "node1": {"addresses": ["10.0.0.1"]}}
    return {
        "node": {"node": node, "network": node, "world_size": 4},
        "software": dict(SOFTWARE),
        "names": {"own": node, "names": names, "back": {address: [f"{node}.cluster", node]}},
        "network": {
            "interfaces": {"lo": ["127.0.0.1"], "eth0": [address]},
            "ipv4": True,
            "ipv6": False,
            "settings": {},
            "wrong": [],
            "address": address,
            "interface": "eth0",
            "loopback": False,
        },
        "folder": {"path": "/runs", "seen": [0, 1, 2, 3]},
        "meeting": {"absent": []},
        "clock": {"skew": 0.001 * rank},
        "pairs": {
            str(other): {"alpha_seconds": 1e-4, "bits_per_second": 1e9} for other in range(4) if other != rank
        },
        "torch": {
            "versions": {"torch": "2+cpu", "numpy": "2", "nccl": None, "cuda": None, "commit": "abc"},
            "gpus": 0,
        },
        "all_reduce": {"device": "cpu", "links": {"alpha_seconds": 1e-4, "bits_per_second": 9e8}},
        "end": {},
    }
