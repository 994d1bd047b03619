"""Section `mounts`: the three mounts on one GPU, the DDP hook's streams, mixed precision, kill and resume.

NCCL allows one rank per GPU, so it runs with W = 1; over gloo, two ranks share the GPU with CUDA tensors.
"""
# W = ranks

import os
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import sage
from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Rows
from sage.comm import process

STEPS = 4
Work = Callable[[Device, str], None]


def network(device: Device, dropout: float = 0.0) -> nn.Sequential:
    """A model with several buckets of 1 MB."""
    torch.manual_seed(0)
    width = 64 if device.rehearsal else 1024
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 10)).to(device.torch)


def batch(device: Device, step: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a rank and step."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    width = 64 if device.rehearsal else 1024
    x_BN = torch.randn(32, width, generator=generator)
    return x_BN.to(device.torch), torch.randint(10, (32,), generator=generator).to(device.torch)


def gradients(model: nn.Module) -> list[Tensor]:
    """Return copies of all gradients, unsharded."""
    copies = []
    for p in model.parameters():
        grad = p.grad
        assert grad is not None
        copies.append((grad.full_tensor() if isinstance(grad, DTensor) else grad).detach().clone())
    return copies


def backward(model: nn.Module, device: Device, step: int) -> None:
    """Run forward and backward on one batch."""
    inputs, target = batch(device, step)
    nn.functional.cross_entropy(model(inputs), target).backward()


def expected(device: Device, step: int) -> list[Tensor]:
    """Return the mean gradient over ranks, by torch's own all-reduce on the CPU."""
    model = network(device)
    backward(model, device, step)
    means = []
    for gradient in gradients(model):
        host = gradient.cpu()
        if dist.get_world_size() > 1:  # nccl takes no CPU tensors, but it has one rank here
            dist.all_reduce(host)
        means.append(host / dist.get_world_size())
    return means


def mounted(
    name: str, model: nn.Module, reducer: str, device: Device, **options: Any
) -> tuple[nn.Module, Any]:
    """Return the model to call, and the mount."""
    if name == "reduce_model":
        return model, sage.reduce_model(model, reducer, **options)
    if name == "ddp_hook":
        wrapped = DistributedDataParallel(model, bucket_cap_mb=0.01 if device.rehearsal else 1)
        return wrapped, sage.ddp_hook(wrapped, reducer, **options)
    names = ("replicate", "shard")
    mesh = init_device_mesh(device.kind, (dist.get_world_size(), 1), mesh_dim_names=names)
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    return model, sage.fsdp_hook(model, reducer, replicate=mesh["replicate"], **options)


def mount_means(device: Device, mount: str, reducer: str) -> None:
    """Check that the gradients are the mean over ranks with `exact`, and finite and not zero with others."""
    model, handle = mounted(mount, network(device), reducer, device)
    for step in range(STEPS):
        model.zero_grad() if mount != "reduce_model" else handle.zero_grad()
        backward(model, device, step)
        if mount == "reduce_model":
            handle.reduce()
        grads = gradients(model)
        assert all(bool(grad.isfinite().all()) for grad in grads)
        assert any(bool(grad.any()) for grad in grads)
        if reducer == "exact":
            for ours, theirs in zip(grads, expected(device, step), strict=True):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-6)


def race(device: Device, reducer: str) -> None:
    """Check the streams of the DDP hook: gradients are right although all free memory holds NaN.

    Before each backward the allocator's free blocks are filled with NaN and the GPU is kept busy, so that NaN
    is read if a collective does not wait for the gradients, or the optimiser not for the collective.
    """
    one, handle = mounted("reduce_model", network(device), reducer, device, grouping="layer")
    other, _ = mounted("ddp_hook", network(device), reducer, device, grouping="layer")
    for step in range(STEPS):
        handle.zero_grad()
        other.zero_grad(set_to_none=True)
        backward(one, device, step)
        handle.reduce()
        poison = [torch.full((size,), torch.nan, device=device.torch) for size in (2**18, 2**20, 2**22)]
        del poison
        if not device.rehearsal:
            torch.cuda._sleep(50_000_000)  # about 30 ms
        backward(other, device, step)
        for ours, theirs in zip(gradients(other), gradients(one), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def mixed(device: Device, dtype: str) -> None:
    """Check autocast in the DDP hook, with GradScaler (fp16) or without (bf16); an overflow skips a step."""
    model, _ = mounted("ddp_hook", network(device), "topk", device, density=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler(device.kind, enabled=dtype == "float16" and not device.rehearsal)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs, target = batch(device, step)
        with torch.autocast(device.kind, dtype=getattr(torch, dtype if not device.rehearsal else "bfloat16")):
            loss = nn.functional.cross_entropy(model(inputs).float(), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(loss.isfinite())
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def train(device: Device, folder: str, *, kill_at: int | None) -> None:
    """Train with dropout and qsgd, with a checkpoint after each step; resume; write the losses."""
    torch.use_deterministic_algorithms(not device.rehearsal, warn_only=True)
    model = network(device, dropout=0.5)
    _, handle = mounted("reduce_model", model, "qsgd", device, memory="residual")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    saved, start, losses = Path(folder, "checkpoint.pt"), 0, []
    torch.manual_seed(5)
    if saved.exists():
        state = torch.load(saved, map_location=device.torch, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        handle.load_state_dict(state["mount"])
        start, losses = state["step"], state["losses"]
        generator = state["generator"].cpu()
        torch.set_rng_state(generator) if device.rehearsal else torch.cuda.set_rng_state(generator)
    for step in range(start, 2 * STEPS):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        handle.zero_grad()
        inputs, target = batch(device, step)
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        handle.reduce()
        optimizer.step()
        losses.append(float(loss.detach()))
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "mount": handle.state_dict(),
            "generator": torch.get_rng_state() if device.rehearsal else torch.cuda.get_rng_state(),
            "step": step + 1,
            "losses": losses,
        }
        torch.save(state, saved.with_suffix(".partial"))
        saved.with_suffix(".partial").rename(saved)


def _rank(
    rank: int, world_size: int, backend: str, meeting: str, device: Device, work: Callable[[Device], None]
) -> None:
    """Run one rank."""
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms
    if backend == "gloo" and not device.rehearsal:  # mounts reduce gradients on a GPU by nccl
        made = process.GroupWire.__init__

        def with_gloo(self: Any, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            self._backend = "gloo"

        process.GroupWire.__init__ = with_gloo  # type: ignore[method-assign]
    dist.init_process_group(backend, init_method=f"file://{meeting}/ranks", rank=rank, world_size=world_size)
    work(device)
    device.sync()
    dist.destroy_process_group()


def ranks(world_size: int, backend: str, device: Device, work: Callable[[Device], None]) -> None:
    """Run a function on W processes.

    Raises:
        Exception: a rank's error with its traceback, or that the rank was killed.
    """
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (world_size, backend, meeting, device, work)
        method = "fork" if device.rehearsal else "spawn"  # CUDA does not survive a fork; imports take seconds
        mp.start_processes(_rank, arguments, nprocs=world_size, start_method=method)


def killed_and_resumed(device: Device, backend: str) -> None:
    """Check that a run that is killed and resumed has the losses of an uninterrupted one, to the bit."""
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        ranks(1, backend, device, partial(train, folder=whole, kill_at=None))
        try:
            ranks(1, backend, device, partial(train, folder=parts, kill_at=STEPS + 1))
        except mp.ProcessExitedException:
            pass
        else:
            raise AssertionError("the run was not killed")
        ranks(1, backend, device, partial(train, folder=parts, kill_at=None))
        one, other = (
            torch.load(Path(folder, "checkpoint.pt"), weights_only=True, map_location="cpu")
            for folder in (whole, parts)
        )
        assert one["losses"] == other["losses"], f"{one['losses']} and {other['losses']}"
        assert all(
            torch.equal(a, b) for a, b in zip(one["model"].values(), other["model"].values(), strict=True)
        )


def run(rows: Rows, device: Device) -> None:
    """Check each mount with several reducers, then races, mixed precision, and resuming."""
    alone = "gloo" if device.rehearsal else "nccl"
    work: list[tuple[str, Callable[[], None]]] = []
    for mount in ("reduce_model", "ddp_hook", "fsdp_hook"):
        for reducer in ("exact",) if device.rehearsal else ("exact", "topk", "sage", "onebit", "powersgd"):
            means = partial(mount_means, mount=mount, reducer=reducer)
            work.append((f"{mount} {reducer}, {alone}, W = 1", partial(ranks, 1, alone, device, means)))
            if reducer in ("exact", "topk") and not (device.rehearsal and mount == "fsdp_hook"):
                two = partial(ranks, 2, "gloo", device, means)
                work.append((f"{mount} {reducer}, gloo, W = 2", two))
    for reducer in ("exact",) if device.rehearsal else ("exact", "topk", "onebit"):
        raced = partial(ranks, 1, alone, device, partial(race, reducer=reducer))
        work.append((f"streams of ddp_hook, {reducer}, poisoned memory", raced))
    for dtype in ("bfloat16",) if device.rehearsal else ("float16", "bfloat16"):
        work.append((f"autocast {dtype}", partial(ranks, 1, alone, device, partial(mixed, dtype=dtype))))
    work.append(("kill and resume, generators of the device", partial(killed_and_resumed, device, alone)))
    rows.while_in_time(work)
