"""Measures what the DDP hook gains by overlapping reduction with backward on a throttled link.

Two ranks train the same model on the same batches. Each rank has its own network namespace, and a virtual
Ethernet pair with the given rate in each direction connects them. The script alternates between one step with
`sage.ddp_hook` and one step with `sage.reduce_model`, which runs the same reducer after backward. The result
is the ratio of the slowest rank's step times, per turn. The script needs root.

    python benchmarks/ddp_overlap.py > benchmarks/results/ddp_overlap.json
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import sage
from sage import registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from slurm.configuration import burst

CLONE_NEWNET = 0x40000000
ADDRESSES = ("10.79.0.1", "10.79.0.2")
MOUNTS = ("hook", "whole")


def rank_in_a_network(rank: int, given: argparse.Namespace, joined: Any, laid: Any, out: Any) -> None:
    """Run one rank: wait until the ranks are connected, then measure every reducer."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot create a network namespace: run the script as root")
    joined.put((rank, os.getpid()))
    laid.wait()
    os.environ |= {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    torch.set_num_threads(1)
    meeting = f"tcp://{ADDRESSES[0]}:29500"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    out.put({reducer: measure(rank, given, reducer) for reducer in given.reducers})
    dist.barrier()
    dist.destroy_process_group()


def measure(rank: int, given: argparse.Namespace, reducer: str) -> dict[str, Any]:
    """Return the seconds of each turn's step by mount, and the bytes that a step sent."""
    density = {} if reducer in ("exact", "fp16", "bf16") else {"density": given.density}
    generator = torch.Generator().manual_seed(rank)
    x_BCHW = torch.randn(given.batch_size, 3, 32, 32, generator=generator)
    y_B = torch.randint(10, (given.batch_size,), generator=generator)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        model: torch.nn.Module = registry.load("models", "resnet")(depth=given.depth, num_classes=10)
        return model

    ddp, plain = DistributedDataParallel(network(), bucket_cap_mb=given.bucket_mb), network()
    hook = sage.ddp_hook(ddp, reducer, **density)
    whole = sage.reduce_model(plain, reducer, **density)
    hook_optimizer, whole_optimizer = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (ddp, plain))

    def hook_step() -> None:
        hook_optimizer.zero_grad()
        F.cross_entropy(ddp(x_BCHW), y_B).backward()
        hook_optimizer.step()

    def whole_step() -> None:
        whole.zero_grad()
        F.cross_entropy(plain(x_BCHW), y_B).backward()
        whole.reduce()
        whole_optimizer.step()

    steps: dict[str, Callable[[], None]] = {"hook": hook_step, "whole": whole_step}
    ledgers = {"hook": hook.wire.ledger, "whole": whole.wire.ledger}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    waiting: dict[str, list[float]] = {name: [] for name in steps}
    sent: dict[str, int] = {}
    for turn in range(given.warm_up + given.turns):
        for name, step in steps.items():
            dist.barrier()  # all ranks start a step at the same time
            before, start = ledgers[name].copy(), time.perf_counter()
            step()
            took, booked = time.perf_counter() - start, ledgers[name].since(before)
            sent[name] = booked.sent
            if turn >= given.warm_up:
                seconds[name].append(took)
                waiting[name].append(booked.seconds)
    hook.close()
    whole.close()
    return {"seconds": seconds, "waiting": waiting, "sent": sent, "parameters": _count(plain.parameters())}


def _count(tensors: Any) -> int:
    xs: list[Tensor] = list(tensors)
    return sum(x.numel() for x in xs)


def lay(pids: dict[int, int], rate: str) -> None:
    """Connect the network namespaces of two ranks by a veth pair, throttled at both ends."""
    run(f"ip link add sage0 netns {pids[0]} type veth peer name sage1 netns {pids[1]}")
    for rank, pid in pids.items():
        inside = f"nsenter --target {pid} --net "
        run(f"{inside}ip link set sage{rank} name eth0")
        run(f"{inside}ip addr add {ADDRESSES[rank]}/24 dev eth0")
        run(f"{inside}tc qdisc add dev eth0 root tbf rate {rate} burst {burst(rate)} latency 100ms")
        for link in ("lo", "eth0"):
            run(f"{inside}ip link set {link} up")


def run(command: str) -> None:
    """Run a command; raise an error if it fails."""
    subprocess.run(command.split(), check=True)


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one reducer's row; the time of a step is that of the slower rank."""
    slowest = {
        name: [max(pair) for pair in zip(*(rank["seconds"][name] for rank in ranks), strict=True)]
        for name in MOUNTS
    }
    ratios = sorted(hook / whole for hook, whole in zip(slowest["hook"], slowest["whole"], strict=True))
    quarter = len(ratios) // 4
    return {
        "step_seconds": {name: round(statistics.median(slowest[name]), 4) for name in MOUNTS},
        "seconds_in_collectives": {
            name: round(statistics.median(ranks[0]["waiting"][name]), 4) for name in MOUNTS
        },
        "sent_bytes_a_step": ranks[0]["sent"],
        "hook_over_whole": {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
            "lowest_and_highest": [round(ratios[0], 3), round(ratios[-1], 3)],
        },
    }


def main() -> None:
    """Run the ranks and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rate", default="10mbit")
    parser.add_argument("--reducers", nargs="+", default=["exact", "bf16", "topk", "sage"])
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument(
        "--depth", type=int, default=20, help="of the ResNet: 18 (11 M parameters), 20, 56, 110"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bucket-mb", type=float, default=0.2)
    parser.add_argument("--warm-up", type=int, default=3, help="warm-up turns, which are not counted")
    parser.add_argument("--turns", type=int, default=12)
    given = parser.parse_args()
    context = get_context("fork")
    joined, out, laid = context.SimpleQueue(), context.SimpleQueue(), context.Event()
    ranks = [
        context.Process(target=rank_in_a_network, args=(rank, given, joined, laid, out), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    lay(dict(joined.get() for _ in ranks), given.rate)
    laid.set()
    results = [out.get() for _ in ranks]
    for process in ranks:
        process.join()
    result = {
        "model": f"resnet, depth {given.depth}",
        "parameters": results[0][given.reducers[0]]["parameters"],
        "batch_size": given.batch_size,
        "world_size": 2,
        "threads": 1,
        "rate": given.rate,
        "density": given.density,
        "bucket_cap_mb": given.bucket_mb,
        "turns": given.turns,
        "warm_up_turns": given.warm_up,
        "load_average": round(os.getloadavg()[0], 1),
        "reducers": {reducer: summary([rank[reducer] for rank in results]) for reducer in given.reducers},
        "machine": f"{os.cpu_count()} cores for both ranks, {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
