"""Tests of `sage.ddp_hook`: the statements of docs/explanation/mounts.md, and failures."""
# N = elements of all gradients together, B = batch

import os
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from gloo import Group, processes
from mounted import SEVERAL, Plain, Refuses, Wrapped, alone, loss, network, once, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.ledger import KINDS
from sage.comm.rendezvous import local_places
from sage.comm.transport import WireError
from sage.comm.wire import Wire
from sage.mount.buckets import cut
from sage.reducers.accordion import Accordion
from sage.reducers.topk import TopK

SMALL = {"bucket_cap_mb": SEVERAL}


class UsesOneLayer(nn.Module):
    """Uses one of three layers, depending on rank and step; the last is unused after step 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x_B: Tensor, rank: int, step: int) -> Tensor:
        return self.layers[2 if step == 0 else rank](x_B)


class Tied(nn.Module):
    """An embedding whose weight is also the decoder's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.decoder.weight = self.encoder.weight

    def forward(self, at_B: Tensor) -> Tensor:
        return self.decoder(self.encoder(at_B))


def choose(model: nn.Module, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    model(torch.randn(4, 8, generator=generator), rank, step).square().sum().backward()


def decode(model: nn.Module, rank: int, step: int) -> None:
    generator = torch.Generator().manual_seed(10 * step + rank)
    model(torch.randint(9, (5,), generator=generator)).square().sum().backward()


def twice(model: nn.Module, rank: int, step: int) -> None:
    """Two micro-batches; with DDP, the first without communication."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            loss(model, rank, 2 * step).backward()
    else:
        loss(model, rank, 2 * step).backward()
    loss(model, rank, 2 * step + 1).backward()


def frozen() -> nn.Module:
    model = network()
    model[4].requires_grad_(False)
    return model


def mixed() -> nn.Module:
    model = network()
    for layer in (model[6], model[8]):
        layer.bfloat16()
    return model.insert(5, Cast()).append(Cast(torch.float32))


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x_B: Tensor) -> Tensor:
        return x_B.to(self.dtype)


def agree(
    rank: int,
    make: Callable[[], nn.Module] = network,
    ddp: dict[str, Any] | None = None,
    **options: Any,
) -> bool:
    """Whether the hook with several buckets is bitwise equal to the whole-model mount."""
    whole = Plain(make(), rank, "topk", density=0.1, **options)
    hook = Wrapped(make(), rank, "topk", density=0.1, **options, ddp={**SMALL, **(ddp or {})})
    return same(whole.train(), hook.train())


# Scenes: results on two ranks, which start once.

Scene = Callable[[int], Any]
SCENES: dict[str, Scene] = {}


def scene(look: Scene) -> Scene:
    SCENES[look.__name__] = look
    return look


@cache
def everything() -> list[dict[str, Any]]:
    return processes(2, lambda wire: {name: look(wire.rank) for name, look in SCENES.items()})


def seen(look: Scene) -> list[Any]:
    """Each rank's result of a scene."""
    return [views[look.__name__] for views in everything()]


@scene
def rebuilding(rank: int) -> tuple[list[int], list[int], float]:
    """The sizes of DDP's buckets and of ours, and the error of the sum of all means."""
    script = Wrapped(network(), rank, "topk", density=0.05, ddp=SMALL)
    sizes: list[int] = []
    take = script.mount._take

    def spy(delivery: Any) -> None:
        sizes.append(len(delivery.gradients))
        take(delivery)

    setattr(script.mount, "_take", spy)  # noqa: B010
    means, own = (
        {name: torch.zeros_like(p) for name, p in script.model.named_parameters()} for _ in range(2)
    )
    for step in range(3):
        once(reference := network(), rank, step)
        script.gradients(step)
        add_gradients(script.model, means)
        add_gradients(reference, own)
    off = 0.0
    for name, held in script.mount.state_dict().items():
        sent = script.mount.wire.mean(own[name] - held["residual_N"])
        off = max(off, float((sent - means[name]).abs().max()))
    ours = [len(bucket.parameters) for bucket in script.mount._buckets]
    script.mount.close()
    return sizes, ours, off


def add_gradients(model: nn.Module, sums: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        assert p.grad is not None
        sums[name] += p.grad


def test_nothing_is_lost_when_ddp_rebuilds_its_buckets() -> None:
    for sizes, ours, off in seen(rebuilding):
        assert sizes == [10, *ours, *ours]
        assert len(ours) == 3
        assert off < 1e-6


LINES: dict[str, dict[str, Any]] = {
    "accumulation": {"backward": twice},
    "frozen parameters": {"make": frozen},
    "tied weights": {"make": Tied, "backward": decode},
    "bf16 gradients": {"make": lambda: network().bfloat16()},
    "fp16 gradients": {"make": lambda: network().half()},
    "float64 gradients": {"make": lambda: network().double()},
    "small tensors": {"min_compress": 300},
    "nothing but small tensors": {"min_compress": 10**6},
    "no memory": {"memory": "none"},
    "memory by weights": {"memory_options": {"beta": 0.5, "gamma": 2.0}},
    "memory by learning rates": {"memory_options": {"lr_ratio": True}},
    "memory of momentum": {"memory": "momentum", "memory_options": {"momentum": 0.5}},
    "memory less the union": {"memory": "union"},
    "memory of estimates": {"memory": "econtrol", "memory_options": {"eta": 0.1}},
    "the schedule guard": {"guard": True},
    "a static graph": {"ddp": {"static_graph": True}},
    "gradients as bucket views": {"ddp": {"gradient_as_bucket_view": True}},
    "channels last": {"make": lambda: network().to(memory_format=torch.channels_last)},
    "unused parameters": {"make": UsesOneLayer, "backward": choose, "ddp": {"find_unused_parameters": True}},
    "unused parameters, bucket views": {
        "make": UsesOneLayer,
        "backward": choose,
        "ddp": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    },
}


@scene
def lines(rank: int) -> dict[str, bool]:
    return {line: agree(rank, **options) for line, options in LINES.items()}


@pytest.mark.parametrize("line", LINES)
def test_the_hook_gives_the_same_as_the_whole_model_mount(line: str) -> None:
    assert all(view[line] for view in seen(lines))


@scene
def kinds(rank: int) -> tuple[list[set[str]], float]:
    """The dtypes in each of our buckets for a model of two dtypes, and the error of its gradient."""
    script = Wrapped(mixed(), rank, "exact")
    script.gradients(0)
    own = [mixed() for _ in range(2)]
    for each, model in enumerate(own):
        once(model, each, 0)
    off = 0.0
    for p, first, second in zip(*(model.parameters() for model in (script.model, *own)), strict=True):
        assert p.grad is not None
        mean = (first.grad + second.grad) / 2
        off = max(off, float((p.grad - mean).abs().max() / mean.abs().max()))
    dtypes = [{str(p.dtype) for p in bucket.parameters} for bucket in script.mount._buckets]
    script.mount.close()
    return dtypes, off


def test_a_model_of_two_dtypes_has_buckets_of_each_dtype() -> None:
    for dtypes, off in seen(kinds):
        assert dtypes == [{"torch.bfloat16"}, {"torch.float32"}]
        assert off < 0.01


@scene
def ways(rank: int) -> bool:
    """Whether a name, a reducer, a class and a factory give the same."""
    result: list[tuple[Any, dict[str, Any]]] = [
        ("topk", {"density": 0.1}),
        (TopK(density=0.1), {}),
        (TopK, {"density": 0.1}),
        (lambda: TopK(density=0.1), {}),
    ]
    name, *others = [
        Wrapped(network(), rank, reducer, ddp=SMALL, **options).train() for reducer, options in result
    ]
    return all(same(name, other) for other in others)


def test_a_reducer_is_a_name_an_instance_or_a_factory() -> None:
    assert seen(ways) == [True, True]


@scene
def bytes_sent(rank: int) -> tuple[dict[str, int], float]:
    script = Wrapped(network(), rank, "topk", density=0.1, values="fp16", ddp=SMALL)
    script.gradients(0)
    payload = script.mount.wire.ledger.payload
    booked, density = {kind: payload[kind] for kind in KINDS if payload[kind]}, script.mount.density
    script.mount.close()
    return booked, density


def test_the_mount_reports_the_bytes_and_the_density() -> None:
    sizes = [p.numel() for p in network().parameters()]
    kept = sum(max(1, n // 10) for n in sizes)
    for booked, density in seen(bytes_sent):
        assert booked == {"values": 2 * kept, "indices": 4 * kept}
        assert density == pytest.approx(kept / sum(sizes))


# State.


def steps(script: Wrapped | Plain, numbers: range) -> None:
    """Some steps; the fourth begins an epoch, at which `accordion` decides."""
    for number in numbers:
        if number % 3 == 0:
            script.mount.begin_epoch(number // 3, lr=0.1)
        script.train([number], close=False)


@scene
def resuming(rank: int) -> dict[str, bool]:
    """Whether a script that is stopped after two steps and loaded into such buckets continues equally."""

    def script(reducer: str, megabytes: float) -> Wrapped:
        options: dict[str, Any] = {
            "accordion": {"density": 0.02, "switch_every": 1},
            "sage": {"density": 0.05},
        }[reducer]
        return Wrapped(network(), rank, reducer, ddp={"bucket_cap_mb": megabytes}, **options)

    def resumes_equally(reducer: str, megabytes: float) -> bool:
        whole, first, second = script(reducer, SEVERAL), script(reducer, SEVERAL), script(reducer, megabytes)
        steps(whole, range(5))
        steps(first, range(2))
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.mount.load_state_dict(first.mount.state_dict())
        steps(second, range(2, 5))
        for each in (first, second):
            each.mount.close()
        return same(whole.train([]), [p.detach() for p in second.model.parameters()])

    return {
        "the same buckets": resumes_equally("sage", SEVERAL) and resumes_equally("accordion", SEVERAL),
        "one bucket": resumes_equally("accordion", 100),
    }


@pytest.mark.parametrize("into", ["the same buckets", "one bucket"])
def test_a_mount_that_is_saved_and_loaded_continues_as_if_uninterrupted(into: str) -> None:
    assert all(view[into] for view in seen(resuming))


@scene
def epochs(rank: int) -> bool:
    """Whether a reducer with a schedule is notified of epochs by the hook as by the loop."""
    whole = Plain(network(), rank, Accordion(density=0.02, switch_every=1))
    hook = Wrapped(network(), rank, Accordion(density=0.02, switch_every=1), ddp=SMALL)
    for script in (whole, hook):
        steps(script, range(7))
    return same(whole.train([]), hook.train([]))


def test_the_reducer_is_notified_of_epochs() -> None:
    assert seen(epochs) == [True, True]


@alone
def test_the_state_is_stored_by_parameter() -> None:
    script = Wrapped(network(), 0, "accordion", density=0.1, min_compress=15, ddp=SMALL)
    script.train(range(2), close=False)
    saved = script.mount.state_dict()
    assert {name for name, p in script.model.named_parameters() if p.numel() >= 15} == set(saved)
    for name, p in script.model.named_parameters():
        if name in saved:
            assert saved[name]["residual_N"].shape == saved[name]["reducer.sum_N"].shape == p.shape
            assert saved[name]["reducer.norm_G"].shape == saved[name]["reducer.last_lr"].shape == ()
    script.mount.close()


@alone
def test_state_of_another_model_or_reducer_is_refused() -> None:
    mount = Wrapped(network(), 0, "topk").mount
    saved = mount.state_dict()
    with pytest.raises(ValueError, match=r"\['0.bias'\] missing, \['bias'\] unknown"):
        mount.load_state_dict({"bias" if name == "0.bias" else name: held for name, held in saved.items()})
    other = Wrapped(network(), 0, "accordion").mount
    with pytest.raises(ValueError, match="mount the reducer that it was saved from, with the same options"):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match="mount the reducer that it was saved from, with the same options"):
        Wrapped(network(), 0, "topk", memory="none").mount.load_state_dict(saved)
    for each in (mount, other):
        each.close()


@alone
def test_an_empty_parameter_group_changes_nothing() -> None:
    with_one, without = Wrapped(network(), 0, "topk"), Wrapped(network(), 0, "topk")
    with_one.optimizer.add_param_group({"params": []})
    assert same(with_one.train(range(2)), without.train(range(2)))


# Refused models and states.


def wrap(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, **options)


@alone
def test_a_model_that_the_hook_cannot_serve_is_refused() -> None:
    sparse = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 2))
    for model, complaint in (
        (network(), "takes a model wrapped in DistributedDataParallel, not a Sequential"),
        (wrap(sparse), "0 has sparse gradients, which buckets cannot hold: set sparse=False"),
        (wrap(network(), skip_all_reduce_unused_params=True), "skip_all_reduce_unused_params=True skips"),
    ):
        with pytest.raises(ValueError, match=complaint):
            sage.ddp_hook(model, "topk")  # type: ignore[arg-type]


@alone
def test_an_unknown_reducer_or_option_is_refused() -> None:
    model = wrap(network())
    with pytest.raises(ValueError, match="no reducer is called 'topl'; did you mean 'topk'"):
        sage.ddp_hook(model, "topl")
    with pytest.raises(ValueError, match="no option of the reducer topk is called 'densty'"):
        sage.ddp_hook(model, "topk", densty=0.1)
    with pytest.raises(ValueError, match="options density are given with an instance of a reducer"):
        sage.ddp_hook(model, TopK(), density=0.1)


def test_without_a_process_group_the_error_says_how_to_create_one() -> None:
    with pytest.raises(ValueError, match="call torch.distributed.init_process_group first"):
        sage.reduce_model(network(), "topk")


def test_buckets_are_formed_from_the_last_parameter_and_the_first_has_its_own_size() -> None:
    named = [(str(n), nn.Parameter(torch.zeros(n))) for n in (1, 2, 3, 4, 5)]
    names = [[name for name, _ in bucket] for bucket in cut(named, first=20, cap=28)]
    assert names == [["5"], ["3", "4"], ["1", "2"]]


# Failures. Each of these tests starts its own processes.

PATIENCE = 6.0  # seconds of the collectives' timeout: a rank on a busy machine joins in that time


class RaisedByBackward(RuntimeError):
    """An error of backward, as opposed to one of the tests' own wire, which also fails."""


def outcomes(work: Callable[[Wire], Any]) -> list[Any]:
    """The result or the error of each of two ranks."""
    with Group(local_places(2), work, timeout=20) as group:
        return [outcome for _, outcome in sorted(group.outcomes(60), key=lambda pair: pair[0])]


def test_an_error_of_a_reducer_is_raised_by_every_later_backward() -> None:
    def work(wire: Wire) -> list[str]:
        script = Wrapped(network(), wire.rank, Refuses, timeout=PATIENCE, ddp=SMALL)
        result = []
        for step in range(3):
            try:
                script.gradients(step)
            except (ArithmeticError, WireError) as error:
                result.append(f"{type(error).__name__}: {error}")
        return result

    first, second = outcomes(work)
    assert second == 2 * ["ArithmeticError: no such gradient"]
    assert first == 2 * [first[0]]
    assert re.match(r"WireError: rank 0: sum\(.* rank 1 is outside any collective", first[0])


@pytest.mark.parametrize(
    ("strike", "verdict"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "Cause: rank 1 does not respond"),
        (lambda: time.sleep(30), "All ranks are alive: rank 0 is in .*; rank 1 is outside any collective"),
    ],
    ids=["killed", "asleep"],
)
def test_backward_names_a_rank_that_does_not_join(strike: Callable[[], None], verdict: str) -> None:
    def work(wire: Wire) -> None:
        script = Wrapped(Tied(), wire.rank, "topk", timeout=PATIENCE, backward=decode)
        for step in range(2):  # from then on DDP itself sends nothing, because it has rebuilt its buckets
            script.gradients(step)
        if wire.rank == 1:
            strike()
        try:
            script.gradients(2)
        except WireError as error:
            raise RaisedByBackward(str(error)) from None

    with Group(local_places(2), work, timeout=20) as group:
        outcome = next(outcome for rank, outcome in group.outcomes(60) if rank == 0)
    assert isinstance(outcome, RaisedByBackward)
    assert re.search(verdict, str(outcome))
