"""Facts that a node determines by itself: its names, addresses, interfaces, software and GPUs."""

import importlib.metadata
import importlib.util
import os
import platform
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sage.comm import address
from sage.comm.rendezvous import Place
from sage.version import __version__

T = TypeVar("T")
Facts = dict[str, Any]


def node(here: Place) -> Facts:
    """This machine's name, and its network: containers on one machine may be in different networks."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "network": f"{boot} {os.readlink('/proc/self/ns/net')}",
        "world_size": here.world_size,
    }


def names(others: list[str], seconds: float) -> Facts:
    """The addresses of this node's own name and of other names, and the names of its own addresses."""
    own = socket.gethostname()
    found = {name: _resolved(name, seconds) for name in dict.fromkeys([own, *others])}
    outward = [one for one in found[own].get("addresses", ()) if not address.is_loopback(one)]
    return {"own": own, "names": found, "back": {one: _named(one, seconds) for one in outward}}


def network(here: Place, seconds: float, environ: Mapping[str, str] = os.environ) -> Facts:
    """The interfaces, the one that leads to rank 0, and whether the settings of gloo and NCCL match them."""
    there = address.interfaces()
    facts: Facts = {
        "interfaces": {one.name: one.addresses for one in there if one.up},
        "ipv4": _has_outward(there, ":", without=True),
        "ipv6": _has_outward(there, ":", without=False),
        "settings": {},
        "wrong": [],
    }
    towards = None
    try:
        towards = with_timeout(seconds, lambda: address.interface_towards(here.hostip, here.port, there))
        facts["address"] = with_timeout(seconds, lambda: address.local_address(here.hostip, here.port))
    except socket.gaierror:
        pass  # reported by `names`
    except OSError as error:
        facts["no_route"] = error.strerror or str(error)
    for variable, takes in ((address.GLOO, address.gloo_takes), (address.NCCL, address.nccl_takes)):
        if setting := environ.get(variable):
            facts["settings"][variable] = setting
            try:
                taken = takes(setting, there)
            except ValueError as error:
                facts["wrong"].append(str(error))
                continue
            if variable == address.GLOO:  # the interface that the ranks will use
                towards = taken[0]
    if towards is not None:
        facts |= {"interface": towards.name, "loopback": towards.is_loopback}
        if facts.get("address") not in towards.addresses and towards.addresses:
            facts["address"] = towards.addresses[0]
    return facts


def software() -> Facts:
    """The versions that must be equal on all nodes, without importing slow packages."""
    return {
        "python": platform.python_version(),
        "sage": __version__,
        "torch": _installed("torch"),
        "numpy": _installed("numpy"),
        "extension": importlib.util.find_spec("sage._C") is not None,
        "gpu_files": len(list(Path("/dev").glob("nvidia[0-9]*"))),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def torch_facts(here: Place) -> Facts:
    """Facts that need torch: its versions, the checkout, and this rank's GPU.

    Raises:
        ImportError, OSError: torch does not load.
    """
    # SAGE reports a dead peer itself, without the store's stack traces.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch

    from sage.records.manifest import manifest

    about = manifest({}, {})
    versions = {name: about["versions"][name] for name in ("torch", "numpy", "nccl", "cuda")}
    facts: Facts = {
        "versions": versions | {"commit": about["git"]["commit"]},
        "gpus": torch.cuda.device_count(),
    }
    if torch.cuda.is_available():
        own = torch.cuda.get_device_properties(here.local_rank % torch.cuda.device_count())
        facts |= {"gpu": own.name, "uuid": str(own.uuid)}
    return facts


def with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may hang, as a resolver that waits for an unreachable server.

    Raises:
        TimeoutError: The call has not returned in time.
        OSError: The call's own error.
    """
    answers: list[T | OSError] = []

    def run() -> None:
        try:
            answers.append(call())
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]


def _resolved(name: str, seconds: float) -> Facts:
    try:
        return {"addresses": with_timeout(seconds, lambda: address.resolve(name))}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def _named(one: str, seconds: float) -> list[str]:
    try:
        name, aliases, _ = with_timeout(seconds, lambda: socket.gethostbyaddr(one))
    except OSError:
        return []
    return [name, *aliases]


def _has_outward(there: list[address.Interface], letter: str, *, without: bool) -> bool:
    return any(
        (letter in one) != without and "%" not in one and not address.is_loopback(one)
        for interface in there
        if interface.up
        for one in interface.addresses
    )


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
