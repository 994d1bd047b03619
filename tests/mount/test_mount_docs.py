"""Tests that the snippets of docs/explanation/mounts.md run in order in one process group of two ranks."""

import os
import re
import subprocess
from pathlib import Path

from sage.report.runs import read_runs

ROOT = Path(__file__).resolve().parents[2]


def test_the_snippets_run_on_two_ranks(tmp_path: Path, python_command: str) -> None:
    page = (ROOT / "docs" / "explanation" / "mounts.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 4
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
