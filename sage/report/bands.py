"""The band of several runs of a setting: their median and their range at each evaluation."""
# E = evaluations of a run, R = runs of a setting

import numpy

from sage.report.steps import Column

BAND = 3
"""From this many runs of a setting with the same evaluations, the metric is a median and a band."""


def band(values_RE: Column) -> tuple[Column, Column, Column]:
    """Return median, minimum and maximum of the finite values over runs (R); NaN where there are none (E)."""
    is_finite_RE = numpy.isfinite(values_RE)
    known_E = is_finite_RE.any(axis=0)
    values_RE = numpy.where(is_finite_RE, values_RE, numpy.nan)[:, known_E]
    results = []
    for of in (numpy.nanmedian, numpy.nanmin, numpy.nanmax):
        result_E = numpy.full(known_E.shape, numpy.nan)
        result_E[known_E] = of(values_RE, axis=0)
        results.append(result_E)
    return results[0], results[1], results[2]
