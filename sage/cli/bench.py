"""`sage bench`: measure reducers and controllers."""

from .group import Group

BENCHES = {
    "record": (".bench_record", "Record the gradients of a run in a file."),
    "density": (
        ".bench_density",
        "Replay recorded gradients under each density controller, and measure the density.",
    ),
    "compress": (
        ".bench_compress",
        "Measure the time and the bytes of every reducer, without a network.",
    ),
    "distribution": (
        ".bench_distribution",
        "Fit distributions to recorded gradients, by layer and over training.",
    ),
}

command = Group("bench", BENCHES, help="Measure reducers and density controllers.")
