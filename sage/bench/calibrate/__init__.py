"""Measures what a prediction of step times needs: links, the model's computation and the reducers."""

from sage.bench.calibrate.from_runs import from_runs as from_runs
from sage.bench.calibrate.main import main as main
from sage.bench.calibrate.main import main_from_runs as main_from_runs
from sage.bench.calibrate.plan import Plan as Plan
