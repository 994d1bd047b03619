"""Predicted steps: against measured runs of this repository, against the measurements they are made of, and
as functions of what is known to matter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_calibration import BANDWIDTH, LATENCY, calibration, dense, links, topk

from sage.predict.calibration import Calibration, Message, MethodTimes
from sage.predict.links import Link
from sage.predict.step_time import SAME_DENSITY, Choice, Mount, Predictor, Setup, memory

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def seconds(
    found: Calibration, method: MethodTimes, setup: Setup, mount: Mount = "whole", mb: float | None = None
) -> float:
    """The estimate of one step."""
    predictor = Predictor(found, num_draws=1)
    step = predictor.step(Choice(method, mount, mb), setup, predictor.links(setup.link))
    return float(step.seconds_DX[0, 0])


def named(found: Calibration, reducer: str) -> MethodTimes:
    return next(each for each in found.methods if each.reducer == reducer)


@pytest.mark.parametrize(
    ("file", "known", "reducer", "bytes_each", "predicted", "error"),
    [
        ("slow_links_quantile.json", "sage", "exact", 4, 6.43, -0.032),
        ("slow_links.json", "exact", "bf16", 2, 4.81, -0.10),
    ],
)
def test_measured_steps_on_slow_links_are_predicted_from_the_step_of_another_method(
    file: str, known: str, reducer: str, bytes_each: int, predicted: float, error: float
) -> None:
    """Computation is what is left of the known step after its bytes. The errors are those of the model."""
    (at,) = json.loads((RESULTS / file).read_text())["at"]
    bytes_per_second, alpha = 1e6 * at["probe_mbit_per_second"] / 8, 1e-3 * at["probe_alpha_ms"]
    compute = at["reducers"][known]["step_seconds"]
    compute -= at["reducers"][known]["sent_bytes_a_step"] / bytes_per_second
    made_up = calibration()
    found = replace(
        made_up,
        links=(),
        model=replace(
            made_up.model,
            forward_seconds=(0.0,),
            backward_seconds=(compute,),
            optimizer_seconds=(0.0,),
            parameters=(replace(made_up.model.parameters[0], numel=at["parameters"]),),
        ),
    )
    method = replace(
        dense(at["parameters"], bytes_each=bytes_each, reducer=reducer),
        encode_seconds=(0.0,),
        decode_seconds={4: (0.0,)},
    )
    found_seconds = seconds(found, method, Setup(4, link=Link((bytes_per_second,), latency=alpha)))
    assert found_seconds == pytest.approx(predicted, abs=0.01)
    measured = at["reducers"][reducer]["step_seconds"]
    assert found_seconds / measured - 1 == pytest.approx(error, abs=0.005)


def test_a_step_after_backward_is_the_sum_of_its_parts() -> None:
    found = calibration()
    ring = 6 * LATENCY + 1.5 * 4 * found.model.numel / BANDWIDTH
    expected = 0.1 + 0.2 + 0.001 + ring + 0.001 + 0.01
    assert seconds(found, named(found, "exact"), Setup(4)) == pytest.approx(expected)


def test_an_overlapped_step_lies_between_its_bounds() -> None:
    """t_f + max(t_b + t_ed, communication) and the step after backward with a latency for each bucket."""
    found = calibration()
    for method in found.methods:
        for bits in (1e7, 1e8, 1e9, 1e10):
            setup = Setup(8, link=Link((bits / 8,)))
            predictor = Predictor(found, num_draws=1)
            network = predictor.links(setup.link)
            step = predictor.step(Choice(method, "ddp", 2.0), setup, network)
            after = predictor.step(Choice(method, "whole"), setup, network)
            coding, sent = float(step.coding_D1[0, 0]), float(step.communication_DX[0, 0])
            assert step.seconds_DX[0, 0] >= 0.11 + max(0.2 + coding, sent) - 1e-9
            assert step.seconds_DX[0, 0] <= 0.11 + 0.2 + coding + sent + 1e-9
            assert sent >= after.communication_DX[0, 0] - 1e-9


def test_with_one_bucket_the_mounts_take_the_same_time() -> None:
    found = calibration()
    for method in found.methods:
        one = seconds(found, method, Setup(4), "ddp", 1e5)
        assert one == pytest.approx(seconds(found, method, Setup(4)))


@settings(max_examples=25)
@given(
    burst=st.floats(1e3, 1e7),
    bandwidth=st.floats(1e6, 1e10),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=3),
)
def test_the_steps_through_a_token_bucket_are_those_of_its_steady_state(
    burst: float, bandwidth: float, sizes: list[int]
) -> None:
    found = calibration()
    messages = tuple(Message("all_gather", size) for size in sizes)
    method = replace(named(found, "topk"), messages={2: messages})
    link = Link((bandwidth,), burst=burst, latency=0.0)
    computing = seconds(found, method, Setup(2, link=Link((1e15,), latency=0.0)))
    tokens, before, sending = burst, -1.0, 0.0
    for _ in range(100_000):  # from the whole burst to what is left of it at the start of every step
        if tokens == before:
            break
        before = tokens
        sending = max(0.0, sum(sizes) - tokens) / bandwidth
        tokens = min(burst, max(0.0, tokens - sum(sizes)) + bandwidth * computing)
    assume(tokens == before)
    for mount in ("whole", "ddp"):
        assert seconds(found, method, Setup(2, link=link), mount, 1e5) == pytest.approx(computing + sending)


def test_a_burst_shortens_overlapped_steps_by_no_more_than_its_own_time() -> None:
    found = calibration()
    for method in found.methods:
        for bits in (1e7, 1e8, 1e9):
            plain = seconds(found, method, Setup(4, link=Link((bits / 8,))), "ddp", 2.0)
            burst = seconds(found, method, Setup(4, link=Link((bits / 8,), burst=1e5)), "ddp", 2.0)
            sent = sum(message.bytes for message in method.messages[4])
            recovered = 0.35 * bits / 8  # in a step's computation, which takes less than that
            assert plain - 8 * (1e5 + recovered) / bits <= burst + 1e-9
            assert burst <= plain
            assert burst < plain or sent == 0


def test_a_backward_that_communication_slows_is_longer_only_where_it_overlaps() -> None:
    found = calibration()
    slowed = replace(found, model=replace(found.model, gamma=(1.1,)))
    exact, longer = named(found, "exact"), []
    for bandwidth in (1e6, 1e7, 1e8, 1e9, 1e12):
        setup = Setup(4, link=Link((bandwidth,)))
        longer.append(seconds(slowed, exact, setup, "ddp", 2.0) - seconds(found, exact, setup, "ddp", 2.0))
        assert seconds(slowed, exact, setup) == seconds(found, exact, setup)
    # Behind a slow link it is hidden, a fast one is hardly in use.
    assert longer[0] == pytest.approx(0, abs=1e-9)
    assert 0.001 < max(longer) < 0.02
    assert 0 <= longer[-1] < 1e-3


def test_decoding_grows_with_gathered_payloads_and_a_faster_device_codes_faster() -> None:
    found = calibration()
    predictor = Predictor(found, num_draws=1)
    method = named(found, "topk")
    assert [predictor.decode(method, w)[0, 0] for w in (2, 4, 64)] == pytest.approx([0.002, 0.004, 0.064])
    summed = replace(named(found, "bf16"), decode_seconds={1: (0.001,), 4: (0.004,), 8: (0.008,)})
    assert [predictor.decode(summed, w)[0, 0] for w in (2, 64)] == [0.004, 0.004]
    setup = Setup(1, speedup=2.0)
    assert seconds(found, method, setup) == pytest.approx((0.1 + 0.2 + 0.05 + 0.001 + 0.01) / 2)


def test_the_slowest_of_many_ranks_sets_the_time() -> None:
    found = calibration()
    spread = replace(found, model=replace(found.model, backward_seconds=(0.19, 0.2, 0.21)))
    predictor = Predictor(spread)
    assert predictor.slowness(1) == pytest.approx(1)
    factors = [predictor.slowness(w) for w in (1, 2, 4, 1000)]
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(0.31 / 0.3)


def test_a_faster_link_and_fewer_ranks_never_make_a_step_longer() -> None:
    found = calibration()
    for method in found.methods:
        for mount in ("whole", "ddp"):
            grid = [
                [seconds(found, method, Setup(w, link=Link((bits / 8,))), mount) for bits in (1e8, 1e9, 1e10)]
                for w in (2, 8, 512)
            ]
            assert (numpy.diff(grid, axis=1) <= 1e-12).all()
            assert (numpy.diff(grid, axis=0) >= -1e-12).all()


def test_that_the_density_stays_the_same_at_other_world_sizes_is_named_as_an_assumption() -> None:
    found = calibration()
    predictor = Predictor(found)
    network = predictor.links(Link())
    for reducer, ranks, is_named in (("topk", 4, False), ("topk", 8, True), ("exact", 8, False)):
        notes = predictor.step(Choice(named(found, reducer), "whole"), Setup(ranks), network).notes
        assert (SAME_DENSITY in notes) is is_named


def test_above_the_measured_ranks_a_tree_may_be_faster_and_the_step_has_a_note() -> None:
    found = calibration()
    predictor = Predictor(found)
    network = predictor.links(Link((1e9,)))
    choice = Choice(named(found, "exact"), "whole")
    assert predictor.step(choice, Setup(4, link=Link((1e9,))), network).notes == ()
    far = predictor.step(choice, Setup(1024), network)
    assert any("ring and tree above 4 ranks" in note for note in far.notes)
    ring = 2 * 1023 * LATENCY + 2 * 1023 / 1024 * 4 * found.model.numel / 1e9
    assert float(far.communication_DX[0, 0]) < ring


def test_an_unmeasured_collective_has_the_time_of_another_and_a_note() -> None:
    found = replace(calibration(), links=tuple(e for e in links() if e.collective == "all_reduce"))
    predictor = Predictor(found)
    step = predictor.step(Choice(named(found, "topk"), "whole"), Setup(4), predictor.links(Link()))
    expected = 3 * LATENCY + 3 * 0.08 * found.model.numel / BANDWIDTH
    assert float(step.communication_DX[0, 0]) == pytest.approx(expected)
    assert any(note.startswith("all_gather was not measured") for note in step.notes)


def test_a_slower_collective_keeps_its_excess_on_slower_links_and_its_factor_on_faster_ones() -> None:
    slow = tuple(
        replace(each, seconds=tuple(2 * t for t in each.seconds)) if each.collective == "all_gather" else each
        for each in links()
    )
    found = replace(calibration(), links=slow)
    predictor = Predictor(found, num_draws=1)
    link = Link((1e8, 1e6), latency=0.0)
    step = predictor.step(Choice(named(found, "topk"), "whole"), Setup(4), predictor.links(link))
    moved = 3 * 0.08 * found.model.numel
    assert step.communication_DX[0] == pytest.approx([moved * 2 / 1e8, moved * (1 / 1e6 + 1 / BANDWIDTH)])


def test_no_link_between_nodes_is_faster_than_those_within_one() -> None:
    intra = tuple(replace(each, scope="intra") for each in links())
    found = replace(calibration(), links=(*links(), *intra))
    predictor = Predictor(found, num_draws=1)
    exact = Choice(named(found, "exact"), "whole")
    fast, as_measured = (
        predictor.step(exact, Setup(4), predictor.links(link)) for link in (Link((1e12,)), Link())
    )
    assert float(fast.seconds_DX[0, 0]) == pytest.approx(float(as_measured.seconds_DX[0, 0]))
    assert any("no link is faster than those within a node" in note for note in fast.notes)


def test_with_one_measured_node_its_links_replace_the_network() -> None:
    intra = tuple(replace(each, scope="intra") for each in links())
    found = replace(calibration(), links=intra, ranks_per_node=4)
    predictor = Predictor(found, num_draws=1)
    exact = Choice(named(found, "exact"), "whole")
    inside, across, slow = (
        predictor.step(exact, setup, predictor.links(setup.link))
        for setup in (Setup(4, 4), Setup(4, 1), Setup(4, 1, Link((BANDWIDTH / 10,))))
    )
    assert float(inside.seconds_DX[0, 0]) == pytest.approx(float(across.seconds_DX[0, 0]))
    assert inside.notes == ()
    assert any("links between nodes were not measured" in note for note in across.notes)
    expected = 6 * LATENCY + 1.5 * 4 * found.model.numel * 10 / BANDWIDTH
    assert float(slow.communication_DX[0, 0]) == pytest.approx(expected)


def test_without_measured_links_a_bandwidth_and_a_latency_are_needed() -> None:
    predictor = Predictor(replace(calibration(), links=()))
    for link, missing in ((Link(), "bandwidth"), (Link((1e9,)), "latency")):
        with pytest.raises(ValueError, match=f"give their {missing} with --{missing}"):
            predictor.links(link)
    predictor.links(Link((1e9,), latency=1e-5))


def test_a_message_that_the_fit_misses_takes_its_measured_time() -> None:
    """Times of a link that is a third slower for large messages, as through a token bucket."""
    bent = tuple(
        replace(each, seconds=tuple(t * (1.33 if each.bytes > 10**6 else 1) for t in each.seconds))
        for each in links()
    )
    found = replace(calibration(), links=bent)
    size = max(each.bytes for each in bent)
    method = dense(size // 4, bytes_each=4, reducer="exact")
    predictor = Predictor(found, num_draws=1)
    step = predictor.step(Choice(method, "whole"), Setup(4), predictor.links(Link()))
    measured = next(e for e in bent if (e.collective, e.ranks, e.bytes) == ("all_reduce", 4, size))
    assert float(step.communication_DX[0, 0]) == pytest.approx(measured.seconds[0], rel=0.02)


def test_memory_is_that_of_gradient_residual_and_payloads() -> None:
    n = 1_000_000
    assert memory(dense(n, bytes_each=4, reducer="exact"), 4, n) == 4 * n + 2 * 4 * n
    assert memory(topk(n), 64, n) == 4 * n + 4 * n + 65 * 0.08 * n
