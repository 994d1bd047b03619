"""The grid of predictions, the limits and the map: what pays, and that they agree."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_up_calibration import calibration, links, model, topk

from sage.predict.calibration import Calibration, Message, MethodTimes
from sage.predict.grid import Row, choices, clusters, names, predict
from sage.predict.limits import Limits, limits
from sage.predict.links import Link
from sage.predict.prediction import make, pictures
from sage.predict.step_time import Predictor, Setup
from sage.predict.win_map import win_map

BITS = (1e7, 1e8, 1e9, 1e10, 1e11)


def setups(*ranks: int, bits: Sequence[float] = BITS) -> list[Setup]:
    return [Setup(each, link=Link(tuple(b / 8 for b in bits))) for each in ranks]


def rows(found: Calibration, *ranks: int, bits: Sequence[float] = BITS) -> list[Row]:
    return predict(Predictor(found), setups(*ranks, bits=bits), choices(found, None))


def test_every_method_is_predicted_under_both_mounts_at_every_bandwidth_and_world_size() -> None:
    found = rows(calibration(noise=0.02), 2, 8, 64)
    assert len({(r.ranks, r.bits_per_second, r.label) for r in found}) == len(found) == 3 * 5 * 6
    for row in found:
        assert row.seconds_low <= row.seconds <= row.seconds_high
        assert row.speedup_low <= row.speedup <= row.speedup_high
        assert row.speedup == pytest.approx(row.reference_seconds / row.seconds)
        assert 0 <= row.exposed_seconds <= row.communication_seconds + 1e-12


def test_a_method_that_needs_more_steps_pays_on_fewer_links() -> None:
    found = calibration()
    ends = []
    for rho in (1.0, 1.5, 3.0, math.inf):
        ratios = {"topk": rho}
        (limit,) = limits(Predictor(found), setups(4), None, ratios)
        edges = [each[-1][1] if each else 0.0 for each in (limit.closed_form, limit.by_recurrence["whole"])]
        ends.append(edges[0])
        assert edges[1] == pytest.approx(edges[0], rel=0.05)
        for row in predict(Predictor(found), setups(4), choices(found, None, ratios)):
            expected = rho if row.reducer == "topk" else 1
            assert row.steps_ratio == expected
            assert row.speedup == pytest.approx(row.reference_seconds / row.seconds / expected)
            if row.reducer == "topk" and row.mount == "whole":
                assert row.coding_budget_seconds is not None
                assert row.bits_per_second is not None
                assert (row.coding_seconds < row.coding_budget_seconds) is (row.bits_per_second < edges[0])
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == 0


def test_a_name_has_the_density_and_the_options_that_distinguish_methods_of_one_reducer() -> None:
    one, two = (
        replace(topk(100), options={"density": 0.01, "values": values, "indices": "int32"})
        for values in ("fp32", "fp16")
    )
    lowrank = replace(topk(100), reducer="powersgd", options={"rank": 4})
    assert names([one, lowrank]) == ["topk(density=0.01)", "powersgd"]
    assert names([one, two]) == ["topk(density=0.01, values=fp32)", "topk(density=0.01, values=fp16)"]


def test_a_method_that_is_slower_than_another_dense_mount_does_not_pay() -> None:
    """On a fast link, bf16 after backward is faster than overlapped: each bucket has the latency."""
    found = calibration()
    found = replace(found, model=replace(found.model, gamma=(2.0,)))

    def labelled(encode: float) -> dict[str, Row]:
        methods = (*found.methods[:2], topk(found.model.numel, encode=encode))
        return {row.label: row for row in rows(replace(found, methods=methods), 4, bits=(1e11,))}

    free = labelled(0.0)
    overlapped, late = free["bf16 × ddp"], "topk(density=0.01) × whole"
    between = (overlapped.seconds + free["bf16 × whole"].seconds) / 2
    by_label = labelled(between - free[late].seconds)
    assert by_label["bf16 × whole"].seconds < by_label[late].seconds < overlapped.seconds
    assert by_label[late].speedup > 1
    assert by_label[late].verdict == "does not pay"


def test_the_reference_is_overlapped_bf16() -> None:
    for cell in clusters(rows(calibration(), 4)):
        (reference,) = (row for row in cell if row.label == "bf16 × ddp")
        assert (reference.speedup, reference.verdict) == (1, "dense")
        assert {row.reference_seconds for row in cell} == {reference.seconds}
        assert [row.seconds for row in cell] == sorted(row.seconds for row in cell)


def test_the_reference_is_made_of_the_element_count_where_it_was_not_measured() -> None:
    found = calibration()
    (method,) = (each for each in found.methods if each.reducer == "topk")
    only = rows(replace(found, methods=(method,)), 4)
    assert {row.label for row in only} >= {"bf16 × ddp", "topk(density=0.01) × ddp"}


def test_a_method_pays_on_slow_links_and_does_not_on_fast_ones() -> None:
    found = {
        row.bits_per_second: row
        for row in rows(calibration(noise=0.02), 4)
        if row.label == "topk(density=0.01) × whole"
    }
    assert [found[bits].verdict for bits in BITS] == ["pays"] * 3 + ["does not pay"] * 2


def test_near_the_break_even_a_noisy_link_leaves_the_verdict_undecided() -> None:
    found = calibration(noise=0.3)
    (limit,) = limits(Predictor(found), setups(4, bits=(1e9,)), None)
    ((_, edge),) = limit.by_recurrence["whole"]
    noisy = replace(found, model=replace(found.model, backward_seconds=(0.1, 0.2, 0.3)))
    (row,) = (row for row in rows(noisy, 4, bits=(edge,)) if row.label == "topk(density=0.01) × whole")
    assert row.verdict == "undecided"
    assert row.speedup_low < 1 < row.speedup_high


def test_beyond_four_times_the_measured_ranks_a_row_is_a_model() -> None:
    found = rows(calibration(), 4, 16, 17)
    assert {row.ranks for row in found if row.is_model} == {17}


def of(found: Calibration, *ranks: int) -> list[Limits]:
    return limits(Predictor(found), setups(*ranks), None)


def test_the_closed_form_the_roots_and_the_predicted_steps_agree() -> None:
    """Under the mount `whole`, layers of one size make the formulas nearly exact."""
    for each in of(calibration(), 2, 4):
        ((low, closed),) = each.closed_form
        ((_, root),) = each.by_roots
        assert low == 0
        assert root == pytest.approx(closed, rel=1e-5)
        ((_, whole),), ((_, ddp),) = each.by_recurrence["whole"], each.by_recurrence["ddp"]
        assert whole == pytest.approx(closed, rel=0.05)
        assert whole <= ddp
        assert each.without_overlap > closed


def test_a_method_that_codes_within_its_budget_is_within_its_limits() -> None:
    found = calibration()
    for ranks in (2, 4, 16, 64):
        (limit,) = of(found, ranks)
        for row in rows(found, ranks):
            if row.verdict == "dense":
                assert row.coding_budget_seconds is None
            elif row.mount == "whole":
                assert row.coding_budget_seconds is not None
                assert row.bits_per_second is not None
                pays = any(low < row.bits_per_second < high for low, high in limit.closed_form)
                assert (row.coding_seconds < row.coding_budget_seconds) is pays


def test_the_compression_that_is_needed_grows_as_links_slow_down() -> None:
    needed = [cell[0].compression_needed for cell in clusters(rows(calibration(), 8))]
    assert None not in needed
    assert needed == sorted(needed, key=lambda each: -(each or 0))
    by_ten = [(a or 0) / (b or 1) for a, b in itertools.pairwise(needed)]
    assert by_ten == pytest.approx([10] * 4)
    assert {row.compression_needed for row in rows(calibration(), 1)} == {None}


def test_at_the_break_even_the_predicted_steps_are_equal() -> None:
    found = calibration()
    (limit,) = of(found, 4)
    for mount, ((_, edge),) in limit.by_recurrence.items():
        (row,) = (row for row in rows(found, 4, bits=(edge,)) if row.label == f"topk(density=0.01) × {mount}")
        assert row.speedup == pytest.approx(1, abs=1e-5)


def test_above_its_most_ranks_a_gather_pays_on_no_link() -> None:
    below, above = of(calibration(), 32, 64)
    assert below.most_ranks == above.most_ranks == pytest.approx(50)
    assert below.closed_form
    assert above.closed_form == above.by_roots == ()
    assert all(each == () for each in above.by_recurrence.values())


def test_a_method_that_sums_has_no_ceiling_and_needs_the_memory_of_its_messages() -> None:
    found = calibration()
    message = Message("all_reduce", 1000)
    lowrank = MethodTimes("powersgd", {"rank": 4}, (0.01,), {2: (0.0,)}, None, {2: (message,)})
    (limit,) = of(replace(found, methods=(lowrank,)), 64)
    assert limit.most_ranks is None
    assert limit.memory_bytes == 8 * found.model.numel + 2000


def test_the_formulas_take_the_algorithm_of_the_predicted_steps_at_many_ranks() -> None:
    """At 10,000 ranks the latency of a ring alone exceeds backward; that of a tree does not."""
    for cell in clusters(rows(calibration(), 10_000, bits=(1e10, 1e11))):
        assert cell[0].compression_needed is not None
        assert math.isfinite(cell[0].compression_needed)


def test_a_method_that_decides_over_the_whole_gradient_has_the_mount_ddp_with_one_bucket_alone() -> None:
    found = calibration()
    whole = replace(topk(found.model.numel), needs_one_bucket=True)
    found = replace(found, methods=(*found.methods[:2], whole))
    for mb, mounts in ((2.0, {"whole"}), (1e4, {"whole", "ddp"})):
        mounted = {each.mount for each in choices(found, mb) if each.method == whole}
        assert mounted == mounts
        (limit,) = limits(Predictor(found), setups(4), mb)
        assert set(limit.by_recurrence) == mounts


def test_the_limits_of_ranks_on_one_node_are_those_of_ranks_on_nodes_of_their_own() -> None:
    intra = tuple(replace(each, scope="intra") for each in links())
    found = replace(calibration(), links=intra, ranks_per_node=4)
    (local,) = limits(Predictor(found), [Setup(4, ranks_per_node=4)], None)
    (apart,) = limits(Predictor(found), [Setup(4)], None)
    assert local == apart
    assert local.by_recurrence["ddp"]


def test_the_map_has_the_fastest_method_of_the_grid() -> None:
    found = calibration(noise=0.02)
    found = replace(found, methods=(*found.methods, topk(found.model.numel, density=0.001, encode=0.08)))
    drawn = win_map(Predictor(found), setups(2, 8, 64, 1000), choices(found, None))
    assert drawn.ranks == (2, 8, 64, 1000)
    assert drawn.bits_per_second == pytest.approx(BITS)
    cells = {(cell[0].ranks, cell[0].bits_per_second): cell for cell in clusters(rows(found, 2, 8, 64, 1000))}
    for ranks, winners in zip(drawn.ranks, drawn.winners, strict=True):
        for bits, winner in zip(BITS, winners, strict=True):
            first = cells[ranks, bits][0]
            assert (winner == -1) == (first.verdict == "dense")
            if winner >= 0:
                assert drawn.labels[winner] == first.label
    assert -1 in {each for winners in drawn.winners for each in winners}


def test_a_prediction_of_one_rank_has_no_communication() -> None:
    found = make(calibration(), [Setup(1)], None)
    assert found.limits == []
    assert {row.communication_seconds for row in found.rows} == {0.0}


def test_the_curves_have_the_overlapped_reference_and_one_mount_of_each_method() -> None:
    found = calibration(noise=0.02)
    drawn = pictures(found, setups(8, bits=(1e8,)), None)
    assert [each.label for each in drawn.curves if each.is_dense] == ["bf16 × ddp", "exact × whole"]
    (method,) = (each for each in drawn.curves if not each.is_dense)
    assert method.label.startswith("topk(density=0.01) × ")
    for each in drawn.curves:
        assert len(each.seconds) == len(drawn.bits_per_second)
        assert all(
            low <= middle <= high for low, middle, high in zip(each.low, each.seconds, each.high, strict=True)
        )
        assert list(each.seconds) == sorted(each.seconds, reverse=True)
    assert drawn.bits_per_second[0] == pytest.approx(1e7)
    assert max(drawn.map.ranks) == 256


def test_a_large_last_bucket_may_pay_on_fast_links_too() -> None:
    """The embedding comes last in backward: nothing hides its all-reduce, however fast the link is."""
    own = model(layers=2)
    small, large = replace(own.parameters[0], numel=1_000_000), replace(own.parameters[1], numel=100_000_000)
    found = calibration()
    n = small.numel + large.numel
    cheap = topk(n, density=0.001, encode=1e-5)
    cheap = replace(cheap, decode_seconds={2: (0.0,), 4: (0.0,)})
    found = replace(found, model=replace(own, parameters=(small, large)), methods=(cheap,))
    (limit,) = of(found, 4)
    assert limit.closed_form[-1][1] > 1e11
    assert math.isinf(limit.closed_form[-1][1]) or limit.closed_form[-1][1] > limit.without_overlap / 100
