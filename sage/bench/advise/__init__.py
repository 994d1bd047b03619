"""`sage advise`: measure, predict, verify by short interleaved runs, and recommend one set-up."""

DENSITIES = (0.01, 0.001)
"""Target densities of the reducers that have one."""

REDUCERS = (
    *("exact", "bf16", "fp16", "int8", "fp8", "natural", "qsgd", "terngrad", "onebit", "efsignsgd"),
    *("topk", "sage", "dgc", "sidco", "randomk", "oktopk", "deft", "powersgd"),
)
"""One or more of each family: all 38 would leave each of them too few reductions in five minutes."""
