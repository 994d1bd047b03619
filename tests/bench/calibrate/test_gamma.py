"""γ, the slow-down of backward by communication: what runs beside backward, and whose ratios count."""

from collections.abc import Callable

import torch
from gloo import processes
from mounted import loss, network

from sage.bench.advise.script_times import backward_of
from sage.bench.calibrate import gamma
from sage.bench.calibrate.collectives import KIND
from sage.bench.calibrate.measurement import training_of
from sage.comm.process import ProcessWire
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import load, resolve
from sage.predict.calibration import Samples

CPU = torch.device("cpu")
LINKS = [Samples("all_reduce", "inter", 2, size, (seconds,)) for size, seconds in ((1024, 0.1), (4096, 0.4))]


def test_each_rank_has_the_ratios_of_all_ranks_and_backward_is_covered_by_all_reduces() -> None:
    def work(wire: Wire) -> tuple[list[float], int]:
        begun = 0

        def backward(begin: Callable[[], None]) -> float:
            nonlocal begun
            before = wire.ledger.copy()
            begin()
            sent = wire.ledger.since(before).payload.get(KIND, 0)
            begun = max(begun, sent)
            return 3.0 + wire.rank if sent else 2.0

        return gamma.measure(backward, LINKS, wire, most_bytes=2000, device=CPU), begun

    for ratios, sent in simulate(2, work):
        assert ratios == [1.5] * gamma.REPEATS + [2.0] * gamma.REPEATS
        assert sent == 25 * 1024  # 1.25 · 2 s of all-reduces that take 0.1 s


def order_in_training(wire: Wire) -> list[str]:
    assert isinstance(wire, ProcessWire)
    config = resolve(load("digits", overrides={"world_size": 2, "profile": True}))
    training = training_of(config, wire, CPU)
    model = training.model
    return events(gamma.of_training(training), model)


def events(backward: gamma.Backward, model: torch.nn.Module) -> list[str]:
    """What happens in a step, in order."""
    found: list[str] = []
    model.register_forward_hook(lambda *_: found.append("forward"))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: found.append("gradient"))
    assert backward(lambda: found.append("communication")) > 0
    return list(dict.fromkeys(found))


def test_in_a_training_communication_begins_between_forward_and_backward() -> None:
    assert processes(2, order_in_training) == [["forward", "communication", "gradient"]] * 2


def test_in_a_script_communication_begins_between_forward_and_backward() -> None:
    model = network()
    backward = backward_of(model, lambda module: loss(module, 0, 0).backward(), CPU)
    assert events(backward, model) == ["forward", "communication", "gradient"]
