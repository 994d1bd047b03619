"""Predicted steps on two levels: against the closed form of their phases, and where they are predicted."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_calibration import calibration, dense, model, topk

from sage.predict import plan
from sage.predict.calibration import Calibration, MethodTimes
from sage.predict.grid import choices, on_two_levels, predict
from sage.predict.links import Link
from sage.predict.prediction import make
from sage.predict.step_time import Choice, Mount, Predictor, Setup, Step
from sage.predict.table import markdown
from sage.predict.two_levels import NOTE

NUMEL = 5_000_000
ALPHA, B, INTRA_ALPHA, INTRA_B = 20e-6, 1.25e9, 3e-6, 1.5e11


def setup(nodes: int, per_node: int) -> Setup:
    link = Link(
        bytes_per_second=(B,),
        latency=ALPHA,
        intra_bytes_per_second=INTRA_B,
        intra_latency=INTRA_ALPHA,
        layout="hierarchical",
    )
    return Setup(ranks=nodes * per_node, ranks_per_node=per_node, link=link)


def plain(method: MethodTimes) -> Calibration:
    """A calibration without measured links, whose collectives differ in nothing but their formulas."""
    return replace(calibration(), links=(), methods=(method,), model=model(layers=20, numel=NUMEL // 20))


def step(method: MethodTimes, at: Setup, hierarchy: str, mount: Mount = "whole") -> Step:
    predictor = Predictor(plain(method), num_draws=1)
    choice = Choice(method, mount, hierarchy="node" if hierarchy == "node" else "flat")
    network = predictor.links(at.link)
    network.most_ranks = at.ranks  # above it, trees are taken where they are faster than rings
    return predictor.step(choice, at, network)


def within(g: int) -> float:
    """Seconds of the dense phases within a node of g ranks, and of the sum of 8 bytes."""
    phase = (g - 1) * INTRA_ALPHA + (g - 1) / g * 4 * NUMEL / INTRA_B
    return 2 * phase + 2 * (g - 1) * INTRA_ALPHA + 2 * (g - 1) / g * 8 / INTRA_B


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 4]), st.integers(2, 8))
def test_a_step_is_the_closed_form_of_its_phases(nodes: int, g: int) -> None:
    gathering = topk(NUMEL, density=0.01)
    (message,) = gathering.messages[nodes]
    across = (nodes - 1) * ALPHA + (nodes - 1) * message.bytes / B  # of g parts through the node's link
    coding = (gathering.encode_seconds[0] + gathering.decode_seconds[nodes][0]) / g
    found = step(gathering, setup(nodes, g), "node")
    assert found.communication_DX[0, 0] == pytest.approx(within(g) + across, rel=1e-6)
    assert found.coding_D1[0, 0] == pytest.approx(coding, rel=1e-6)
    computed = found.seconds_DX - found.communication_DX - found.coding_D1
    flat = step(gathering, setup(nodes, g), "flat")
    assert computed[0, 0] == pytest.approx(
        float((flat.seconds_DX - flat.communication_DX - flat.coding_D1)[0, 0])
    )


@pytest.mark.parametrize("g", [2, 8])
def test_exact_takes_what_a_hierarchical_all_reduce_takes(g: int) -> None:
    """Such an all-reduce is a reduce-scatter, all-reduces of the parts and an all-gather."""
    exact = dense(NUMEL, bytes_each=4, reducer="exact")
    ours, theirs = (step(exact, setup(4, g), hierarchy).communication_DX for hierarchy in ("node", "flat"))
    density = 2 * (g - 1) * INTRA_ALPHA + 2 * (g - 1) / g * 8 / INTRA_B
    assert ours[0, 0] == pytest.approx(theirs[0, 0] + density, rel=1e-9)


def test_with_one_rank_a_node_it_is_a_flat_step() -> None:
    for method in (topk(NUMEL, density=0.01), dense(NUMEL, bytes_each=2, reducer="bf16")):
        for mount in ("whole", "ddp"):
            node, flat = (step(method, setup(4, 1), hierarchy, mount) for hierarchy in ("node", "flat"))
            assert node.seconds_DX.tolist() == flat.seconds_DX.tolist()
            assert node.notes == flat.notes


def test_under_ddp_the_phases_of_a_bucket_overlap_with_backward() -> None:
    method = dense(NUMEL, bytes_each=2, reducer="bf16")
    whole, ddp = (step(method, setup(2, 4), "node", mount) for mount in ("whole", "ddp"))
    assert ddp.communication_DX[0, 0] > whole.communication_DX[0, 0]  # the latencies of each bucket
    assert ddp.exposed_DX[0, 0] < whole.exposed_DX[0, 0]


def test_gathers_gain_what_the_ranks_of_a_node_do_not_send() -> None:
    """Flat, W − 1 payloads pass to each rank; on two levels N − 1 of the whole gradient to each node."""
    gathering = topk(NUMEL, density=0.05)
    node, flat = (step(gathering, setup(4, 8), hierarchy).communication_DX for hierarchy in ("node", "flat"))
    assert node[0, 0] < flat[0, 0] / 4


def test_two_levels_are_predicted_where_there_are_several_nodes_of_several_ranks() -> None:
    made_up = calibration()
    compared = choices(made_up, None)
    assert on_two_levels(compared, setup(4, 1)) == on_two_levels(compared, setup(1, 4)) == []
    assert on_two_levels(compared, replace(setup(4, 2), ranks=7)) == []
    found = on_two_levels(compared, setup(4, 2))
    assert [choice.label for choice in found] == [f"{choice.label} × node" for choice in compared]
    rows = predict(Predictor(made_up), [setup(4, 2)], compared)
    assert {row.hierarchy for row in rows} == {"flat"}


def test_a_plan_has_the_set_ups_of_both_hierarchies(tmp_path: Path) -> None:
    keys = {"nodes": [1, 4], "gpus_per_node": 2, "bits_per_second": 1e9, "intra_bits_per_second": 1e11}
    lines = [f"{name} = {value}" for name, value in keys.items()]
    (tmp_path / "plan.toml").write_text("\n".join(["[[cluster]]", *lines]))
    found = make(calibration(), plan.read(tmp_path / "plan.toml"), None)
    by_ranks = {ranks: {row.label: row for row in found.rows if row.ranks == ranks} for ranks in (2, 8)}
    assert not any("node" in label for label in by_ranks[2])
    labels = {label for label in by_ranks[8] if not label.endswith(" × node")}
    assert set(by_ranks[8]) == labels | {f"{label} × node" for label in labels}
    for label, row in by_ranks[8].items():
        assert (NOTE in row.notes) == label.endswith(" × node") == (row.hierarchy == "node")
        assert row.coding_budget_seconds is None or row.hierarchy == "flat"
    text = markdown(found, everything=True)
    assert "× whole × node" in text
    assert NOTE in text
