"""Dimensionless groups: their definitions, and the bandwidth that keeps S0/(B t_b)."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.predict import dimensionless
from sage.predict.dimensionless import bits_per_second, groups, num_buckets

ABOVE_0 = st.floats(1e-6, 1e12)


def test_the_examples_in_the_docstrings_are_correct() -> None:
    found = doctest.testmod(dimensionless)
    assert found.attempted > 3
    assert found.failed == 0


def test_every_group_is_the_quotient_of_its_definition() -> None:
    found = groups(
        world_size=4,
        dense_bytes=1000,
        bits_per_second=800,  # 100 bytes per second
        backward_seconds=2,
        encode_decode_seconds=3,
        received_bytes=250,
        latency_seconds=0.1,
        num_buckets=5,
    )
    assert (found.world_size, found.communication, found.encoding, found.volume) == (4, 5, 1.5, 0.25)
    assert found.latency == pytest.approx(0.25)


@given(ABOVE_0, ABOVE_0, ABOVE_0)
def test_a_set_up_at_the_bandwidth_computed_for_a_group_has_that_group(
    communication: float, dense_bytes: float, backward_seconds: float
) -> None:
    bandwidth = bits_per_second(
        communication=communication, dense_bytes=dense_bytes, backward_seconds=backward_seconds
    )
    found = groups(
        world_size=2, dense_bytes=dense_bytes, bits_per_second=bandwidth, backward_seconds=backward_seconds
    )
    assert found.communication == pytest.approx(communication)


@given(st.floats(1e-3, 1e3))
def test_faster_compute_and_a_faster_link_by_one_factor_change_no_group(factor: float) -> None:
    def at(scale: float) -> str:
        return str(
            groups(
                world_size=4,
                dense_bytes=22e6,
                bits_per_second=1e8 * scale,
                backward_seconds=0.07 / scale,
                encode_decode_seconds=0.12 / scale,
                received_bytes=2.7e5,
                latency_seconds=1e-4 / scale,
                num_buckets=3,
            )
        )

    assert at(factor) == at(1)


def test_unknown_values_are_left_out() -> None:
    found = groups(world_size=4, dense_bytes=1, bits_per_second=1, backward_seconds=1, latency_seconds=1)
    assert (found.encoding, found.volume, found.latency) == (None, None, None)
    assert str(found) == "S0/(B t_b) = 8, W = 4"


def test_buckets_are_one_of_1_mib_and_then_of_25() -> None:
    assert [num_buckets(size) for size in (1, 2**20, 2**20 + 1, 26 * 2**20, 26 * 2**20 + 1)] == [
        1,
        1,
        2,
        2,
        3,
    ]


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["dense_bytes", "bits_per_second", "backward_seconds"])
def test_a_quantity_that_is_not_above_0_is_refused_by_its_name(name: str, value: float) -> None:
    one = {"dense_bytes": 1.0, "bits_per_second": 1.0, "backward_seconds": 1.0, name: value}
    with pytest.raises(ValueError, match=f"^{name} is {value}; allowed is a finite number above 0$"):
        groups(
            world_size=2,
            dense_bytes=one["dense_bytes"],
            bits_per_second=one["bits_per_second"],
            backward_seconds=one["backward_seconds"],
        )
