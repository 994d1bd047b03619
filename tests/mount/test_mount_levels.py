"""`sage.reduce_model(hierarchy="node")` in a custom loop, on two nodes of two ranks."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import Plain, network, once

import sage
from sage.comm.wire import Wire
from sage.testing.harness import same_bits

NODE: dict[str, Any] = {"hierarchy": "node", "ranks_per_node": 2}
METHODS: dict[str, dict[str, Any]] = {
    "exact": {},
    "topk": {"density": 0.05},
    "sage": {"density": 0.05, "min_compress": 30},
    "powersgd": {},
}


@cache
def seen() -> list[dict[str, Any]]:
    """The results of each of four ranks, which start once."""

    def work(wire: Wire) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, options in METHODS.items():
            script = Plain(network(), wire.rank, name, **options, **NODE)
            found[name] = torch.cat([p.view(-1) for p in script.train(range(3), close=False)])
            found[f"{name} traffic"] = script.mount.last_step
            script.mount.check_replicas()
            again = Plain(network(), wire.rank, name, **options, **NODE)
            again.model.load_state_dict(script.model.state_dict())
            again.optimizer.load_state_dict(copy.deepcopy(script.optimizer.state_dict()))
            again.mount.load_state_dict(copy.deepcopy(script.mount.state_dict()))
            both = [each.train(range(3, 5)) for each in (script, again)]
            found[f"{name} resumed"] = all(same_bits(a, b) for a, b in zip(*both, strict=True))
        found["flat"] = torch.cat([p.view(-1) for p in Plain(network(), wire.rank, "exact").train(range(3))])
        found["overflow"] = _overflow(wire)
        with pytest.raises(ValueError, match="ranks_per_node") as raised:
            sage.reduce_model(network(), "exact", hierarchy="node", ranks_per_node=3)
        found["refused"] = str(raised.value)
        with pytest.raises(ValueError, match="different configurations") as raised:
            sage.reduce_model(network(), "exact", **(NODE if wire.rank == 1 else {}))
        found["differ"] = str(raised.value)
        return found

    return processes(4, work)


def _overflow(wire: Wire) -> tuple[bool, bool]:
    """After a step that is not finite on one rank: all gradients are NaN, and the state is as before."""
    script = Plain(network(), wire.rank, "topk", density=0.05, **NODE)
    script.train(range(2), close=False)
    before = {name: dict(state) for name, state in script.mount.state_dict().items()}
    kept = {name: state["residual_N"].clone() for name, state in before.items()}
    script.mount.zero_grad()
    once(script.model, wire.rank, 2)
    if wire.rank == 3:
        next(script.model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
    script.mount.reduce()
    after = {name: state["residual_N"] for name, state in script.mount.state_dict().items()}
    nan = all(p.grad is not None and bool(p.grad.isnan().all()) for p in script.model.parameters())
    script.mount.zero_grad()
    script.mount.close()
    return nan, all(same_bits(kept[name], after[name]) for name in kept)


@pytest.mark.parametrize("name", METHODS)
def test_every_rank_has_the_same_parameters_and_the_state_resumes_to_the_bit(name: str) -> None:
    first, *others = seen()
    assert all(same_bits(other[name], first[name]) for other in others)
    assert all(rank[f"{name} resumed"] for rank in seen())


def test_exact_is_a_flat_mean_up_to_the_order_of_sums() -> None:
    for rank in seen():
        torch.testing.assert_close(rank["exact"], rank["flat"], atol=1e-6, rtol=1e-6)


def test_the_traffic_has_the_bytes_within_the_node_apart() -> None:
    n = sum(p.numel() for p in network().parameters())
    for number, rank in enumerate(seen()):
        traffic = rank["exact traffic"]
        own = (n + 1) // 2 if number % 2 == 0 else n // 2
        assert traffic.wire_sent_in_node == traffic.wire_received_in_node == 4 * n + 8
        assert traffic.payload_bytes == 4 * own
        # The mean of the part between two nodes, and the flag of four ranks.
        assert traffic.wire_sent - traffic.wire_sent_in_node == 4 * own + 6


def test_a_step_that_is_not_finite_anywhere_changes_no_state() -> None:
    assert [rank["overflow"] for rank in seen()] == [(True, True)] * 4


def test_settings_that_do_not_fit_are_refused_on_every_rank() -> None:
    for rank in seen():
        assert "ranks_per_node is 3, but 4 ranks cannot be divided into nodes of 3" in rank["refused"]
        assert "rank 1 has the hierarchy node with ranks_per_node 2" in rank["differ"]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"hierarchy": "rack"}, "hierarchy is 'rack'; allowed is one of flat, node"),
        ({"ranks_per_node": 2}, "ranks_per_node is 2 with the hierarchy flat"),
    )
    for options, says in cases:
        with pytest.raises(ValueError, match=says):
            sage.reduce_model(torch.nn.Linear(2, 2), "exact", **options)


def test_the_record_of_a_script_has_the_hierarchy_and_its_bytes(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        script = Plain(network(), wire.rank, "exact", **NODE)
        script.train(range(2), close=False)
        script.mount.record(tmp_path / "mine", loss=0.5)
        script.mount.close()

    processes(2, work)
    config, result = (
        json.loads((tmp_path / "mine" / name).read_text()) for name in ("config.json", "result.json")
    )
    assert (config["hierarchy"], config["ranks_per_node"]) == ("node", 2)
    n = sum(p.numel() for p in network().parameters())
    assert result["wire_sent_in_node_per_step"] == 4 * n + 8
