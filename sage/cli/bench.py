"""`sage bench`: measure reducers and controllers."""

from .group import Group

BENCHES = {"record": ".bench_record", "density": ".bench_density", "compress": ".bench_compress"}

command = Group("bench", BENCHES, help="Measure reducers and density controllers.")
