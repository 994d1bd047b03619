"""The pictures of a prediction: whole files, with the same style of a method in both."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_up_calibration import calibration, topk

from sage.predict.calibration import Calibration
from sage.predict.plan import of_flags
from sage.predict.prediction import Pictures, pictures
from sage.report.prediction import MOST_CURVES, assigned, chosen, step_time, win_map


def with_methods(num: int) -> Calibration:
    """A calibration with so many sparse methods, of different densities and speeds."""
    found = calibration(noise=0.02)
    n = found.model.numel
    densities = [0.1 / 2**i for i in range(num)]
    sparse = [topk(n, density=each, encode=0.01 + 0.1 * i / num) for i, each in enumerate(densities)]
    return replace(found, methods=(*found.methods[:2], *sparse))


def of(found: Calibration, ranks: int = 8) -> Pictures:
    return pictures(found, of_flags((ranks,), (), burst=None, latency=None, ranks_per_node=1), None)


@pytest.mark.parametrize("num", [0, 1, 6, 60])
def test_the_pictures_are_svg_for_any_number_of_methods(num: int) -> None:
    found = of(with_methods(num))
    for draw in (step_time, win_map):
        text = draw(found)
        assert ET.fromstring(text).tag.endswith("svg")
        assert text == draw(found)


def test_the_map_names_the_methods_that_are_fastest_somewhere_and_the_region_without() -> None:
    found = of(with_methods(4))
    text = win_map(found)
    assert "nothing pays:" in text
    assert found.map.labels
    assert all(label in text for label in found.map.labels)


def test_no_two_methods_have_one_style_and_curves_that_never_matter_are_left_out() -> None:
    found = of(with_methods(20))
    assert len(set(assigned(found).values())) == 20
    drawn = chosen(found.curves)
    assert len(drawn) == MOST_CURVES
    assert [each.label for each in drawn if each.is_dense] == ["bf16 × ddp", "exact × whole"]
    text = step_time(found)
    assert all(each.label in text for each in drawn)


def test_one_bandwidth_and_two_ranks_are_enough() -> None:
    found = pictures(calibration(), of_flags((2,), (1e9,), burst=None, latency=1e-5, ranks_per_node=1), None)
    assert ET.fromstring(win_map(found)).tag.endswith("svg")
