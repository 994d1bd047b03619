"""Tests that the ranks of a job run in the container of [slurm], and its batch script outside of it."""

import shlex
from pathlib import Path

import pytest
from commands import call

IMAGE = "registry.example.org#sage:latest"


def script(folder: Path, capsys: pytest.CaptureFixture[str], slurm: str) -> str:
    """Return the batch script of a sweep with these lines in [slurm]."""
    folder.mkdir(exist_ok=True)
    (folder / "sweep.toml").write_text(
        f'workload = "digits-ff"\nreducer = "topk"\ndevice = "cpu"\n[slurm]\n{slurm}\n'
    )
    options = ["--runs", str(folder / "runs"), "--cluster", "slurm", "--dry-run"]
    assert call("submit", str(folder / "sweep.toml"), *options) == 0
    return capsys.readouterr().out


def srun(text: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("srun --"))
    return shlex.split(line)


def test_srun_gets_the_image_and_the_folders_of_the_run_and_sbatch_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = "/scratch/data:/data,/etc/hosts:/etc/hosts:ro"
    text = script(tmp_path, capsys, f'container-image = "{IMAGE}"\ncontainer_mounts = "{own}"')
    words = srun(text)
    runs = tmp_path / "runs"
    assert [word for word in words if word.startswith("--container")] == [
        f"--container-image={IMAGE}",
        f"--container-mounts={tmp_path}:{tmp_path},{runs}:{runs},{own}",
        f"--container-workdir={tmp_path}",
    ]
    assert words[words.index("-m") - 2 :][:4] == ["python3", "-u", "-m", "sage.jobs.entry"]
    assert not [line for line in text.splitlines() if line.startswith("#SBATCH") and "container" in line]


def test_without_an_image_ranks_run_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(tmp_path, capsys, 'partition = "debug"')
    assert "container" not in text
    assert "python3" not in srun(text)


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ('container-mounts = "/a:/a"', "container-mounts without container-image: set the image"),
        ("container-image = true", "container-image is True; allowed is a string"),
        ('container-imge = "x"', "did you mean 'container-image'"),
    ],
)
def test_options_that_pyxis_would_reject_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        script(tmp_path, capsys, slurm)


def test_a_folder_that_cannot_be_mounted_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="mounts are separated by , and : so no path may contain them"):
        script(tmp_path / "a,b", capsys, f'container-image = "{IMAGE}"')
