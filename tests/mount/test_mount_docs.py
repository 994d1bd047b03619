"""Tests that the snippets of mounts.md and sharding.md run in order in one process group of two ranks."""

import os
import re
import subprocess
from pathlib import Path

from sage.report.runs import read_runs

ROOT = Path(__file__).resolve().parents[2]


def test_the_snippets_run_on_two_ranks(tmp_path: Path, python_command: str) -> None:
    pages = [(ROOT / "docs" / "explanation" / name).read_text() for name in ("mounts.md", "sharding.md")]
    of_each = [re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE) for page in pages]
    assert [len(snippets) for snippets in of_each] == [4, 1]
    snippets = of_each[0] + of_each[1]
    begin, end = 'dist.init_process_group("gloo")\n', "dist.destroy_process_group()\n"
    assert all(begin in each and each.endswith(end) for each in snippets)
    inner = "\n".join(each.replace(begin, "").replace(end, "") for each in snippets)
    imports = "import torch.distributed as dist\n"
    (tmp_path / "train.py").write_text(imports + begin + inner + end)
    done = subprocess.run(
        [python_command, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python_command},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {run.config["reducer"]: run for run in read_runs([tmp_path / "runs"])[0]}
    assert {name: len(run.steps) for name, run in runs.items()} == {"topk": 3, "bf16_compress_hook": 1}
