"""A run on photographs in a folder: killed, resumed, and with another number of decoding threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from digit_files import write_digits
from launcher import Brake, Launcher, assert_same_run, is_gone, until

# Seven steps per epoch, with the residual of top-k; colours change at random.
ARGV = (
    "resnet50-caltech101 --model resnet --model.depth 20 --reducer topk --batch-size 2 --steps 4 "
    "--checkpoint-every 2 --data.size 32 --data.preprocessing byteps --data.folder"
)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launcher.imports.standard_library_imports", list)  # takes seconds; not used here
        launcher = Launcher(tmp_path_factory.mktemp("runs"))
    write_digits(launcher.folder / "digits")
    yield launcher
    launcher.close()


def test_a_run_killed_in_mid_epoch_with_threads_ends_as_one_without_threads_or_interruption(
    launcher: Launcher, tmp_path: Path
) -> None:
    argv = f"{ARGV} {launcher.folder / 'digits'}"
    brake = Brake(tmp_path / "brake")
    run = launcher.start(f"{argv} --data.loaders 2", tmp_path / "runs", tamper=brake.before_step(3))
    ranks = brake.paused_ranks()
    run.process.kill()
    until(lambda: all(is_gone(pid) for pid in ranks))
    resumed = launcher.finish(f"{argv} --data.loaders 2", tmp_path / "runs")
    assert "resuming from its own checkpoint, at step 2 of 4" in resumed.output
    assert_same_run(launcher.reference(argv).folder, resumed.folder)


def test_a_damaged_image_ends_the_run_with_its_name(launcher: Launcher, tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    for path in (tmp_path / "digits" / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-150])
    run = launcher.start(f"{ARGV} {tmp_path / 'digits'} --data.loaders 1", tmp_path / "runs")
    assert run.wait() == 2, run.output
    lines = [line for line in run.output.splitlines() if "is damaged" in line]
    assert lines, run.output
    assert all(f"{tmp_path}/digits/train/digit-" in line for line in lines)
