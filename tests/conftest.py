"""What several tests need."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Find the real data: `$SAGE_DATA_DIR`, else `../shared/data` beside the checkout."""
    root = Path(os.environ.get("SAGE_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip("no real data: set SAGE_DATA_DIR")
    return root
