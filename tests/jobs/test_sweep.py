"""Tests that a sweep's lists expand into every combination once, with the configuration of its keys."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sage.config import Config, load, resolve
from sage.jobs.resources import resources
from sage.jobs.sweep import Sweep, labels, note, noted, read

CHECKOUT = Path(__file__).parents[2]
SWEEPS = sorted((CHECKOUT / "jobs" / "sweeps").glob("*.toml"))
TUNED = [path for path in SWEEPS if "[pilot.grid]" in path.read_text()]
"""Those whose comparison can be submitted once `sage target` has chosen the points of the methods."""


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    """Write a sweep, and read it."""

    def write(text: str, **given: Any) -> Sweep:
        (tmp_path / "sweep.toml").write_text(text)
        return read(tmp_path / "sweep.toml", **given)

    return write


def first(path: Path, runs: Path | None = None) -> Sweep:
    """The runs of a sweep that are to be submitted first: the pilot runs if they choose its tuning."""
    untuned = read(path, runs, untuned=True)
    return read(path, runs, pilot=untuned.pilot is not None and untuned.pilot.is_tuned)


def folders(cells: list[Config]) -> list[str]:
    return [cell.folder.name for cell in cells]


def alone(workload: str = "digits-ff", **settings: Any) -> str:
    """Return the folder of the run with these settings outside of a sweep."""
    return resolve(load(workload, overrides=settings)).folder.name


def test_every_combination_is_a_run_with_the_same_folder_as_outside_the_sweep(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = ["exact", "topk"]\nseed = [0, 1, 2]\nlr = [0.1, 1]\nsteps = 5'
    )
    wanted = [
        alone(reducer=reducer, seed=seed, lr=lr, steps=5)
        for reducer, seed, lr in product(["exact", "topk"], range(3), [0.1, 1])
    ]
    assert folders(found.configs) == wanted
    assert len(set(wanted)) == 12


def test_mounts_and_bucket_sizes_are_runs_of_their_own(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = "bf16"\n[[grid]]\nmount = "whole"\n'
        '[[grid]]\nmount = "ddp"\nbucket_mb = [25, 1, 0.5]'
    )
    wanted = [alone(reducer="bf16")]
    wanted += [alone(reducer="bf16", mount="ddp", bucket_mb=size) for size in (25, 1, 0.5)]
    assert folders(found.configs) == wanted
    assert len(set(wanted)) == 4


def test_numbers_of_shards_are_runs_of_their_own_under_fsdp_alone(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = "exact"\nworld_size = 4\n'
        'mount = ["whole", "fsdp"]\nshards = [1, 2, 4]'
    )
    wanted = [alone(reducer="exact", world_size=4)]
    wanted += [alone(reducer="exact", world_size=4, mount="fsdp", shards=shards) for shards in (1, 2, 4)]
    assert folders(found.configs) == wanted
    assert len(set(wanted)) == 4
    assert list(labels(found).values()) == [
        "mount whole, shards 1", "mount fsdp, shards 1", "mount fsdp, shards 2", "mount fsdp, shards 4",
    ]  # fmt: skip


def test_shards_that_do_not_divide_the_ranks_of_a_run_are_refused_before_it_is_submitted(sweep: Any) -> None:
    with pytest.raises(ValueError, match="shards is 2, but 3 ranks cannot be divided into replicas of 2"):
        sweep('workload = "digits-ff"\nworld_size = [2, 3]\nmount = "fsdp"\nshards = 2')


def test_hierarchies_are_runs_of_their_own_and_nodes_must_divide_the_ranks(sweep: Any) -> None:
    text = 'workload = "digits-ff"\nreducer = "exact"\nworld_size = 4\nhierarchy = ["flat", "node"]\n'
    found = sweep(f"{text}ranks_per_node = 2")
    node: dict[str, Any] = {"hierarchy": "node", "ranks_per_node": 2}
    assert folders(found.configs) == [
        alone(reducer="exact", world_size=4),
        alone(reducer="exact", world_size=4, **node),
    ]
    with pytest.raises(ValueError, match="ranks_per_node is 3, but 4 ranks cannot be divided into nodes"):
        sweep(f"{text}ranks_per_node = 3")


def test_a_reducers_options_expand_only_its_own_runs(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = ["exact", "topk", "gtopk"]\n'
        '[reducers.topk]\ndensity = [0.5, 0.25]\nvalues = ["fp32", "fp16"]'
    )
    options = [
        {"density": density, "values": values} for density in (0.5, 0.25) for values in ("fp32", "fp16")
    ]
    wanted = [alone(reducer="exact"), *(alone(reducer="topk", reducer_options=each) for each in options)]
    assert folders(found.configs) == [*wanted, alone(reducer="gtopk")]


def test_parts_expand_and_their_options_with_them(sweep: Any) -> None:
    found = sweep(
        'workload = ["digits", "digits-ff"]\nreducer = "exact"\n[data_options]\nlimit_train = [64, 128]'
    )
    wanted = [
        alone(w, reducer="exact", data_options={"limit_train": n})
        for w in ("digits", "digits-ff")
        for n in (64, 128)
    ]
    assert folders(found.configs) == wanted


def test_for_an_option_that_takes_a_list_only_a_list_of_lists_expands(sweep: Any) -> None:
    text = 'workload = "digits-ff"\nschedule = "step"\nmilestones = {}\n[model_options]\nhidden = {}'
    (cell,) = sweep(text.format("[2, 4]", "[30, 20]")).configs
    assert cell.milestones == (2.0, 4.0)
    assert cell.model_options["hidden"] == (30, 20)
    cells = sweep(text.format("[[2, 4], [3]]", "[[30], []]")).configs
    assert [(cell.milestones, cell.model_options["hidden"]) for cell in cells] == [
        ((2.0, 4.0), (30,)),
        ((2.0, 4.0), ()),
        ((3.0,), (30,)),
        ((3.0,), ()),
    ]


def test_each_grid_overrides_the_other_keys_and_is_expanded_separately(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = "topk"\nseed = [0, 1]\n[reducers.topk]\nvalues = "fp16"\n'
        "[[grid]]\nlr = 0.5\n[grid.reducers.topk]\ndensity = [0.5, 0.25]\n[[grid]]\nlr = 1.0\nseed = 7"
    )
    first = [
        alone(reducer="topk", seed=seed, lr=0.5, reducer_options={"values": "fp16", "density": density})
        for seed, density in product((0, 1), (0.5, 0.25))
    ]
    last = alone(reducer="topk", seed=7, lr=1.0, reducer_options={"values": "fp16"})
    assert folders(found.configs) == [*first, last]


def test_duplicate_runs_are_merged(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = "exact"\nseed = [0, 1, 0]\n[[grid]]\n[[grid]]\nlr = [0.1, 0.1]'
    )
    assert folders(found.configs) == [alone(reducer="exact", seed=0), alone(reducer="exact", seed=1)]


def test_slurm_options_apply_to_each_run_and_do_not_change_its_name(sweep: Any) -> None:
    text = 'workload = "digits-ff"\nreducer = "exact"\n[slurm]\npartition = "a"\ntime = 30\n'
    one, other = sweep(text + '[[grid]]\n[[grid]]\nseed = 1\n[grid.slurm]\npartition = "b"').configs
    assert one.slurm == {"partition": "a", "time": 30}
    assert other.slurm == {"partition": "b", "time": 30}
    assert one.folder.name == alone(reducer="exact")


def test_arguments_override_the_keys_of_the_file(sweep: Any) -> None:
    text = 'workload = "digits-ff"\nruns = "here"\nparallel = 2\nmax_requeues = 1'
    found = sweep(text)
    assert (found.runs, found.parallel, found.max_requeues) == (Path("here"), 2, 1)
    found = sweep(text, runs=Path("there"), parallel=5, max_requeues=0)
    assert (found.runs, found.parallel, found.max_requeues) == (Path("there"), 5, 0)
    assert found.configs[0].folder.parent == Path("there")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", "a sweep needs a workload: one of .*digits, .*, or a TOML file"),
        ('workload = "digts"', "no workload is called 'digts'; did you mean 'digits'"),
        ('workload = "digits"\nsede = [1]', "no setting .* is called 'sede'; did you mean 'seed'"),
        ('workload = "digits"\n[reducers.tpok]', "no reducer is called 'tpok'; did you mean 'topk'"),
        ('workload = "digits"\nreducer = ["tpok"]', "no reducer is called 'tpok'; did you mean"),
        (
            'workload = "digits"\nreducer = "topk"\n[reducers.topk]\ndensty = [1]',
            "no option of the reducer topk is called 'densty'; did you mean 'density'",
        ),
        (
            'workload = "digits"\n[model_options]\ndepht = 20',
            "no option of the model resnet is called 'depht'; did you mean 'depth'",
        ),
        ('workload = "digits"\nseed = []', "seed is an empty list, which expands to no run"),
        ('workload = "digits"\nlr = [0.1, -1]', "lr is -1; allowed is a number in"),
        ('workload = "digits"\nreducer = "topk"\n[reducers.topk]\ndensity = [0.1, 2]', "density"),
        ('workload = "digits"\nparallel = 0', "parallel is 0; allowed is a whole number in"),
        (
            'workload = "digits"\n[[grid]]\nparallel = 2',
            "parallel .* is in a .* but applies to the whole sweep",
        ),
        ('workload = "digits"\ngrid = 3', "grid .* is 3; allowed are tables written as"),
        (
            'workload = "digits"\ntimeout = [30, 60]',
            "timeout is .*; allowed is one value, because",
        ),
        ('workload = "digits"\nfresh = true', "fresh is true, but requeued runs must resume"),
        (
            'workload = "digits"\nreducer = "exact"\n[reducers.topk]\ndensity = 0.5',
            r"\[reducers.topk\] .* applies to no run; the runs' reducers are exact: add 'topk'",
        ),
        ("workload", "sweep.toml is not valid TOML: "),
    ],
)
def test_a_mistake_in_a_sweep_is_an_error_with_what_is_allowed(sweep: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(text)


@pytest.mark.parametrize("value", ["{}", "{a = 1}", "[{}]", "[[]]", "5", "1.5", "true", "1979-05-27"])
@pytest.mark.parametrize("part", ["workload", "model", "data", "reducer"])
def test_a_part_that_is_not_a_string_is_refused_by_name(sweep: Any, part: str, value: str) -> None:
    above = "" if part == "workload" else 'workload = "digits"\n'
    for text in (f"{above}{part} = {value}", f'workload = "digits"\n[[grid]]\n{part} = {value}'):
        with pytest.raises(ValueError, match=rf"^{part} \(in sweep.toml\) is [^\n]*; allowed [^\n]*$"):
            sweep(text)


@pytest.mark.parametrize("value", ["5", "[5]", '"x"', "true", "1979-05-27"])
@pytest.mark.parametrize("table", ["reducers", "reducers.topk", "reducer_options", "grid", "slurm"])
def test_a_value_that_must_be_a_table_is_refused_by_name(sweep: Any, table: str, value: str) -> None:
    for text in (f"{table} = {value}", f"[[grid]]\n{table} = {value}"):
        with pytest.raises(ValueError, match=rf"^{table} [^\n]*$"):
            sweep(f'workload = "digits"\nreducer = "topk"\n{text}')


def test_labels_distinguish_the_runs_of_a_reducer(sweep: Any) -> None:
    found = sweep(
        'workload = "digits-ff"\nreducer = ["exact", "topk"]\nseed = [0, 1]\n'
        "[reducers.topk]\ndensity = [0.5, 0.25]"
    )
    assert list(labels(found).values()) == [
        "seed 0",
        "seed 1",
        "density 0.5, seed 0",
        "density 0.25, seed 0",
        "density 0.5, seed 1",
        "density 0.25, seed 1",
    ]


def test_cached_labels_are_read_without_torch_until_the_sweep_changes(sweep: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    found = sweep('workload = "digits-ff"\nseed = [0, 1]', runs=runs)
    note(found)
    code = "import sys; from sage.cli.main import main; main(['status', *sys.argv[1:]])"
    command = [
        sys.executable,
        "-c",
        f"{code}; assert 'torch' not in sys.modules",
        str(found.path),
        "--runs",
        str(runs),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for cell in found.configs:
        assert cell.folder.name in output
    assert output.splitlines()[-1] == "2 runs: 2 missing"
    changed = sweep('workload = "digits-ff"\nseed = [1, 2]', runs=runs)
    assert noted(found.path, runs) == (labels(changed), runs)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_run_folders_have_the_same_names_if_options_are_read_from_source(path: Path) -> None:
    code = "import json, sys; from pathlib import Path; from sage.jobs.sweep import noted\n"
    code += "print(json.dumps(noted(Path(sys.argv[1]), Path('nowhere'))[0]))\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == labels(first(path, Path("nowhere")))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_bundled_sweeps_can_be_submitted(path: Path) -> None:
    found = read(path, untuned=path in TUNED)
    pilots = [] if found.pilot is None else read(path, pilot=True).configs
    assert path.read_text().startswith("# ")
    has_sage = path.stem != "ptb-lm-settings"  # its settings are those of the study, which had no `sage`
    assert {cell.reducer for cell in found.configs} >= {"exact"} | ({"sage"} if has_sage else set())
    for cell in (*found.configs, *pilots):
        assert resources(cell).nodes > 0
    assert (len(pilots) > 0) == (found.pilot is not None)
    assert len(found.configs) == 12 or path.stem != "digits"


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_a_bundled_sweep_that_is_tuned_asks_for_its_pilot_runs_first(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tuning point is chosen .* run `sage submit .* --pilot`"):
        read(path)
