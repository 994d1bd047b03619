"""Which reducers `--mount ddp` refuses with several buckets; a calibration records it for predictions."""

from typing import Any

import pytest

from sage import registry
from sage.config import Config, load, resolve
from sage.train.mount_limits import check_buckets, needs_one_bucket


@pytest.mark.parametrize(
    ("reducer", "more", "needs"),
    [
        ("exact", {}, False),
        ("topk", {}, False),
        ("topk", {"grouping": "model"}, True),
        ("sage", {}, True),
        ("int8", {}, True),
        ("int8", {"grouping": "layer"}, False),
        ("exact", {"clip_local": 1.0}, True),
    ],
)
def test_what_decides_over_the_whole_gradient_needs_one_bucket(
    reducer: str, more: dict[str, Any], needs: bool
) -> None:
    config: Config = resolve(load("digits-ff", overrides={"reducer": reducer, **more}))
    made = registry.load("reducers", config.reducer)(**config.reducer_options)
    assert needs_one_bucket(config, made) is needs
    check_buckets(config, made, num_buckets=1, num_bytes=4)
    if needs:
        with pytest.raises(ValueError, match="reduces 2 buckets one by one"):
            check_buckets(config, made, num_buckets=2, num_bytes=4)
