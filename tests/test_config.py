"""Tests of the configuration of a run: its layers, its validation and error messages, and its hash."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage import registry
from sage.cli.run import parse_run
from sage.config import (
    NOT_HASHED,
    Config,
    Options,
    annotations,
    load,
    part_options,
    recorded,
    resolve,
    workloads,
)
from sage.config.field_types import PARTS
from sage.config.local_presets import KEYS as LOCAL
from sage.config.shards import FORMATS
from sage.registry import parts
from sage.validate import LATER

BASE = Config(workload="w", task="classify", model="resnet", data="digits")
SHARDED = replace(BASE, mount="fsdp", shards=4, shard_reduce="fp8")
ASIDE_FIELDS = {name for name, annotation in annotations().items() if NOT_HASHED in get_args(annotation)}

# What local updates with fragments need.
PLAIN: dict[str, Any] = {
    "hierarchy": "flat",
    "ranks_per_node": None,
    "outer_by_lr": False,
    "optimizer": "adamw",
}

# Another valid value for every field, so that a new field without one fails here.
OTHER: dict[str, Any] = {
    "workload": "other",
    "task": "recommend",
    "model": "vgg",
    "data": "cifar10",
    "reducer": "topk",
    "model_options": {"depth": 56},
    "data_options": {"limit": 5},
    "reducer_options": {"density": 0.5},
    "world_size": 3,
    "workers_in_process": True,
    "threads": 2,
    "device": "cpu",
    "epochs": 0.5,
    "steps": 7,
    "batch_size": 8,
    "accumulate": 2,
    "optimizer": "adam",
    "lr": 0.2,
    "lr_scale": 1.0,
    "warmup_epochs": 1.0,
    "warmup_steps": 0,
    "warmup_from": 0.5,
    "schedule": "cosine",
    "milestones": (1.0, 2.0),
    "lr_factor": 0.5,
    "lr_decay": 0.1,
    "decay_from": 2.0,
    "min_lr": 0.01,
    "warmdown": 0.5,
    "momentum": 0.5,
    "momentum_kind": "none",
    "momentum_at": "before",
    "weight_decay": 0.1,
    "weight_decay_at": "before",
    "decay_norms": True,
    "decay_embeddings": False,
    "beta1": 0.5,
    "beta2": 0.5,
    "adam_eps": 1e-6,
    "adamw_lr": 0.01,
    "adamw_names": ("head.*",),
    "ns_steps": 6,
    "freeze_step": 9,
    "bias_correction": True,
    "var_update_scaler": 4,
    "local_step_scaler": 64,
    "local_step_clipper": 8,
    "demo_decay": 0.9,
    "demo_k": 8,
    "demo_edge": 32,
    "demo_average": True,
    "demo_values": "fp32",
    "rank_fraction": 0.25,
    "adjust_lr_fn": "match_rms_adamw",
    "clip_local_by_world": True,
    "amp": "bf16",
    "non_finite": "skip",
    "local": "diloco",
    "local_steps": 3,
    "local_from": 5,
    "outer_optimizer": "nesterov",
    "outer_lr": 0.5,
    "outer_momentum": 0.5,
    "outer_by_lr": True,
    "first_moment_steps": 6,
    "second_moment_steps": 12,
    "fragments": 3,
    "fragment_order": "sequential",
    "fragment_sync_delay": 2,
    "fragment_update_alpha": 0.5,
    "quorum": 2,
    "memory_beta": 0.5,
    "memory_gamma": 0.5,
    "memory_lr_ratio": True,
    "memory_momentum": 0.5,
    "memory_masking": False,
    "memory_nesterov": True,
    "memory_a": 0.5,
    "memory_eta": 0.5,
    "memory_loco_beta": 0.5,
    "memory_reset_every": 100,
    "continue_from": Path("elsewhere"),
    "clip_local": 1.0,
    "clip_global": 1.0,
    "average_from": 1.0,
    "seed": 1,
    "target": 0.9,
    "memory": "none",
    "grouping": "bucket:2.5",
    "min_compress": 0,
    "mount": "ddp",
    "bucket_mb": 5.0,
    "shards": 2,
    "shard_reduce": "int8",
    "shard_gather": "bf16",
    "shard_block": 64,
    "shard_node": 2,
    "hierarchy": "node",
    "ranks_per_node": 2,
    "log_every": 2,
    "histogram_every": 2,
    "profile": True,
    "trace": 2,
    "track": ("wandb",),
    "vnmse_every": 3,
    "eval_every": 0.5,
    "runs": Path("elsewhere"),
    "data_root": Path("there"),
    "checkpoint_every": 5,
    "timeout": 1.0,
    "check_replicas": 5,
    "guard": True,
    "oversubscribe": True,
    "fresh": True,
    "slurm": {"partition": "gpu"},
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    return write(
        tmp_path / "mine.toml",
        """# Mine
        task = "classify"
        model = "resnet"
        data = "digits"
        lr = 1
        batch_size = 16
        [model_options]
        depth = 20
        [reducers.sage]
        density = 0.25
        [reducers.topk]
        density = 0.125
        [slurm]
        partition = "short"
        time = 10
        """,
    )


# The hash and the folder


@pytest.mark.parametrize("name", [each.name for each in fields(Config)])
def test_the_hash_changes_with_every_field_except_those_not_hashed(name: str) -> None:
    base = replace(BASE, mount="ddp") if name == "bucket_mb" else BASE
    base = replace(BASE, mount="fsdp") if name == "shards" else base
    base = SHARDED if name in FORMATS else base
    if name in (*LOCAL, "quorum") and name != "local_steps":
        base = replace(BASE, local_steps=4, outer_optimizer="sgd", optimizer="adamw")
    base = replace(BASE, hierarchy="node") if name == "ranks_per_node" else base
    changed = replace(base, **{name: OTHER[name]})
    assert getattr(changed, name) != getattr(base, name)
    assert (changed.hash == base.hash) == (name in ASIDE_FIELDS)


def test_formats_of_shards_count_only_where_something_is_sent_in_them() -> None:
    formats: dict[str, Any] = {name: OTHER[name] for name in FORMATS}
    assert replace(BASE, **formats).hash == BASE.hash
    alone = replace(BASE, mount="fsdp")
    assert replace(alone, **formats).hash == alone.hash
    whole = replace(alone, shards=4)
    assert replace(whole, shard_block=64, shard_node=2).hash == whole.hash
    halves = replace(whole, shard_gather="bf16")
    assert replace(halves, shard_block=64, shard_node=2).hash == halves.hash != whole.hash
    with pytest.raises(
        ValueError, match="shard_node is 3, but 4 shards cannot be .* of 3: allowed are 1, 2, 4$"
    ):
        replace(SHARDED, shard_node=3)
    assert replace(whole, shard_node=3).hash == whole.hash  # in a sweep, of the runs that have no nodes


def test_the_ranks_of_a_node_count_only_on_two_levels() -> None:
    assert replace(BASE, ranks_per_node=2).hash == BASE.hash
    assert replace(BASE, hierarchy="flat").to_dict() == BASE.to_dict()


def test_the_size_of_buckets_counts_only_where_there_are_buckets() -> None:
    assert replace(BASE, bucket_mb=5.0).hash == BASE.hash
    assert replace(BASE, mount="ddp", bucket_mb=25.0).hash == replace(BASE, mount="ddp").hash


def test_the_hash_is_equal_for_1_and_1_0_and_for_any_order_of_options() -> None:
    assert replace(BASE, lr=1).hash == replace(BASE, lr=1.0).hash
    one: Options = {"a": 1, "b": 2}
    other: Options = {"b": 2, "a": 1}
    assert replace(BASE, model_options=one).hash == replace(BASE, model_options=other).hash


def test_the_folder_name_has_workload_reducer_and_hash() -> None:
    assert BASE.folder == Path("runs") / f"w-sage-{BASE.hash}"
    assert len(BASE.hash) == 8
    assert int(BASE.hash, 16) >= 0


def test_a_config_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "config",
    [BASE, Config(**{**OTHER, "weight_decay_at": "after", "mount": "whole", **PLAIN})],
)
def test_a_config_is_equal_after_conversion_to_json_and_back(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-9, 1e9),
            "seed": st.integers(0, 2**32 - 1),
            "milestones": st.lists(st.floats(0.1, 1e3), unique=True).map(sorted),
            "target": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "reducer_options": st.dictionaries(
                st.text(),
                st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()
                | st.text() | st.lists(st.integers()),
            ),
        },
    )
)  # fmt: skip
def test_any_config_is_bitwise_equal_after_conversion_to_json_and_back(values: dict[str, Any]) -> None:
    config = replace(BASE, **values)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.hash == config.hash


# Validation


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("lr", 0, r"lr is 0; allowed is a number in \(0, inf\)"),
        ("lr", "0.1", r"lr is '0.1'; allowed is a number"),
        ("lr", float("inf"), r"lr is inf"),
        ("lr", float("nan"), r"lr is nan"),
        ("lr", True, r"lr is True"),
        ("lr", 10**400, r"lr is 1000.*\.\.\.; allowed is a number"),
        ("timeout", 1e300, r"timeout is 1e\+300; allowed is a number in \[0.01, 1e\+06\]"),
        ("seed", 2**32, r"allowed is a whole number in \[0, 4294967295\]"),
        ("threads", 10**9, r"in \[1, 4096\]"),
        ("epochs", 1e308, r"in \(0, 1e\+09\]"),
        ("runs", "a\0b", "a character that no path may have"),
        ("runs", "~nobody-of-this-name/x", "no home folder is known for '~nobody-of-this-name'"),
        ("momentum", 1.0, r"a number in \[0, 1\)"),
        ("lr_factor", 1.5, r"a number in \(0, 1\]"),
        ("batch_size", 0, r"a whole number in \[1, inf\)"),
        ("batch_size", 2.0, r"batch_size is 2.0; allowed is a whole number"),
        ("steps", 0, r"a whole number in \[1, inf\), or none"),
        ("profile", 1, r"profile is 1; allowed is true or false"),
        (
            "optimizer",
            "sdg",
            r"optimizer is 'sdg'; allowed is one of 'sgd', 'adam', 'adamw', 'muon', 'signum'",
        ),
        ("milestones", (3, 0), r"milestones is \(3, 0\); allowed is a list, each a number in \(0, inf\)"),
        ("milestones", (3, 2), "in increasing order"),
        ("schedule", "step", "without milestones"),
        ("schedule", "decay", "lr_decay 0"),
        ("min_lr", 0.2, "min_lr is 0.2, above lr 0.1"),
        ("warmdown", 0, r"a number in \(0, 1\]"),
        ("ns_steps", 100, r"a whole number in \[1, 99\]"),
        ("memory", "momentum", "momentum is 0.9 after the reduction.*set --momentum 0"),
        ("memory", "ef21-sgdm", "'ef21-sgdm', and momentum is 0.9 after the reduction.*set --momentum 0"),
        ("grouping", "bucket:0", r"model, layer, or bucket:<MB>"),
        ("grouping", "buckets", r"grouping is 'buckets'"),
        ("model_options", {"depth": [[1]]}, "a table of options"),
    ],
)
def test_an_invalid_value_is_refused_with_what_is_allowed(field: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(BASE, **{field: value})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory": "ef21", "memory_beta": 0.5}, "has no residual, and memory_beta is 0.5.*memory_beta to 1"),
        ({"memory": "diana", "memory_gamma": 2.0}, "has no residual, and memory_gamma is 2.0"),
        ({"memory": "econtrol", "memory_lr_ratio": True}, "has no residual, and memory_lr_ratio is True"),
        ({"optimizer": "adamw", "momentum_at": "before"}, "optimizer 'adamw', which has a momentum"),
        ({"optimizer": "muon", "momentum_at": "before"}, "optimizer 'muon', which has a momentum"),
        *(
            (
                {"optimizer": optimizer, "weight_decay": 0.1, "weight_decay_at": "before"},
                f"the weight decay of {optimizer} is decoupled, so it is never added to a gradient",
            )
            for optimizer in ("adamw", "muon", "signum")
        ),
        ({"optimizer": "onebit-adam"}, "without freeze_step: set --freeze-step"),
        *(
            ({"optimizer": "onebit-adam", "freeze_step": 1, "reducer": "exact", **wrong}, says)
            for wrong, says in (
                ({"reducer": "topk"}, "reducer is 'topk', which is not called: use --reducer exact"),
                ({"mount": "ddp"}, "mount is 'ddp', which reduces gradients: use --mount whole"),
                ({"memory": "residual"}, "memory is 'residual', but no gradient is reduced"),
                ({"clip_global": 1.0}, "clip_global is 1.0, but no rank .* use --clip-global none"),
                ({"grouping": "bucket:1"}, "grouping is 'bucket:1', .* use --grouping model or layer"),
                ({"momentum_at": "before"}, "'onebit-adam', which has a momentum of its own"),
                ({"weight_decay": 0.1, "weight_decay_at": "before"}, "of onebit-adam is decoupled"),
            )
        ),
        *(
            ({"optimizer": optimizer, "reducer": "exact", **wrong}, says)
            for optimizer in ("demo", "dion")
            for wrong, says in (
                ({"reducer": "topk"}, f"optimizer is '{optimizer}', .* use --reducer exact"),
                ({"grouping": "layer"}, "grouping is 'layer', .* leave --grouping out"),
                ({"hierarchy": "node"}, "hierarchy is 'node', .* use --hierarchy flat"),
                ({"momentum_at": "before"}, f"'{optimizer}', which has a momentum of its own"),
            )
        ),
        ({"optimizer": "dion", "momentum_kind": "nesterov"}, "no variant of Nesterov: use .* heavy-ball"),
        (
            {"decay_embeddings": False, "weight_decay": 0.1, "weight_decay_at": "before"},
            "decay_embeddings false, which is only supported after the reduction",
        ),
        ({"optimizer": "muon", "mount": "fsdp", "shards": 2}, "whole matrices, but shards 2 divides them"),
    ],
)
def test_an_optimiser_refuses_settings_that_contradict_it(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(BASE, **settings)


def test_settings_that_have_no_effect_contradict_no_optimiser() -> None:
    for optimizer in ("adamw", "muon"):
        replace(BASE, optimizer=optimizer, momentum_at="before", momentum=0.0, weight_decay_at="before")


def test_a_mistyped_setting_lists_similar_names(workload: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no setting \(in x.toml\) is called 'momentun'; did you mean 'momentum'"
    ):
        load(str(workload), file=write(workload.with_name("x.toml"), "momentun = 0.5"))


def test_a_setting_unlike_any_other_lists_all_names(workload: Path) -> None:
    with pytest.raises(ValueError, match=r"'qqq'; allowed are accumulate, adam_eps, .*, world_size"):
        load(str(workload), overrides={"qqq": 1})


def test_unknown_fields_and_missing_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        Config.from_dict({**BASE.to_dict(), "sed": 1})
    with pytest.raises(ValueError, match="not given: task, data"):
        Config.from_dict({"workload": "w", "model": "m"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr = ", "x.toml is not valid TOML"),
        ("workload = 'w'", "no setting"),
        ("reducer = 'tpok'", "did you mean 'topk'"),
        ("reducers.tpok.density = 1", "no reducer is called 'tpok'"),
        ("reducers.topk = 1", "reducers.topk .* is 1; allowed is a table"),
        ("model_options = 1", "model_options .* allowed is a table"),
        ("lr = '0.1'", "lr is '0.1'"),
        ("lr = 1979-05-27", r"lr is datetime.date\(1979, 5, 27\); allowed is a number"),
        ("seed = " + "9" * 5000, "x.toml"),
        ("reducer = [1]", r"reducer \(in x.toml\) is \[1\]; allowed is a text"),
        ("model = {a = 1}", r"model \(in x.toml\) is {'a': 1}; allowed is a text"),
        ("task = 3", r"task \(in x.toml\) is 3; allowed is a text"),
        ("task = 'clasify'", "no task is called 'clasify'; did you mean 'classify'"),
        ("reducer = '.topk'", "no reducer is called '.topk'; allowed are a name of `sage list`"),
        ("model = 'a..b'", "no model is called 'a..b'"),
        ("reducer = './none.py'", "none.py cannot be read: No such file"),
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("slurm = [1]", r"slurm \(in x.toml\) is \[1\]"),
    ],
)
def test_an_invalid_file_is_refused(workload: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(str(workload), file=write(workload.with_name("x.toml"), text))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\xff\xfe", "x.toml is .*not UTF-8 text"),
        (b"\x7fELF", "x.toml is not valid TOML"),
        (b"lr = \xe9", "UTF-8"),
    ],
)
def test_a_binary_file_is_refused_by_name(workload: Path, content: bytes, says: str) -> None:
    file = workload.with_name("x.toml")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load(str(workload), file=file)


def test_a_folder_in_place_of_a_file_is_refused_by_name(workload: Path) -> None:
    with pytest.raises(ValueError, match=f"{workload.parent} is a folder, not a regular file"):
        load(str(workload), file=workload.parent)


def test_a_file_may_begin_with_a_byte_order_mark(workload: Path) -> None:
    workload.write_bytes(b"\xef\xbb\xbf" + workload.read_bytes())
    assert load(str(workload)).batch_size == 16


def test_a_path_may_begin_with_the_home_folder(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    file = write(workload.with_name("x.toml"), 'runs = "~/r"\ndata_root = "~/d"\ncontinue_from = "./~/c"')
    config = load(str(workload), file=file)
    assert (config.runs, config.data_root) == (Path("/somewhere/r"), Path("/somewhere/d"))
    assert config.continue_from == Path.cwd() / "~" / "c"
    assert Config.from_dict(config.to_dict()) == config


def test_the_hash_depends_on_the_content_of_a_file_given_as_a_part(workload: Path, tmp_path: Path) -> None:
    source = Path(registry.__file__).parents[1] / "reducers" / "exact.py"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, moved, edited = tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py", tmp_path / "mine.py"
    first.write_text(source.read_text())
    moved.write_text(source.read_text())
    edited.write_text(source.read_text() + "\n")
    configs = [
        resolve(load(str(workload), overrides={"reducer": str(each)})) for each in (first, moved, edited)
    ]
    assert configs[0].hash == configs[1].hash != configs[2].hash
    assert configs[0].folder.name == f"mine-mine-{configs[0].hash}"


def test_unknown_workloads_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'digits"):
        load("digitts")
    with pytest.raises(ValueError, match=r"there is no file .*nowhere.toml"):
        load(str(tmp_path / "nowhere.toml"))


# Layers


def test_each_layer_overrides_the_one_below(workload: Path) -> None:
    file = write(workload.with_name("x.toml"), "batch_size = 64\nseed = 5\nslurm.time = 20")
    config = load(str(workload), file=file, overrides={"seed": 9})
    assert (config.workload, config.epochs, config.lr, config.batch_size, config.seed) == (
        "mine",
        1.0,
        1.0,
        64,
        9,
    )
    assert config.slurm == {"partition": "short", "time": 20}


def test_a_reducers_table_applies_only_to_that_reducer(workload: Path) -> None:
    assert load(str(workload)).reducer_options == {"density": 0.25}
    assert load(str(workload), overrides={"reducer": "topk"}).reducer_options == {"density": 0.125}
    assert load(str(workload), overrides={"reducer": "exact"}).reducer_options == {}
    file = write(workload.with_name("x.toml"), "reducer = 'topk'\nreducers.topk.density = 0.5")
    assert load(str(workload), file=file).reducer_options == {"density": 0.5}
    given = {"reducer_options": {"density": 0.75}}
    assert load(str(workload), file=file, overrides=given).reducer_options == {"density": 0.75}


def test_another_part_drops_the_options_of_the_former_one(workload: Path) -> None:
    file = write(workload.with_name("x.toml"), "[model_options]\ndepth = 56")
    assert load(str(workload), file=file).model_options == {"depth": 56}
    assert load(str(workload), file=file, overrides={"model": "vgg"}).model_options == {}
    given = {"model": "vgg", "model_options": {"depth": 11}}
    assert load(str(workload), file=file, overrides=given).model_options == {"depth": 11}


def test_resolving_adds_the_defaults_of_the_parts_and_is_idempotent(workload: Path) -> None:
    config = resolve(load(str(workload)))
    for part, options in part_options(config).items():
        make: Any = registry.load(PARTS[part], getattr(config, part))
        later = set(getattr(make, "later", ()))
        assert set(getattr(config, f"{part}_options")) == set(options) - later
    assert config.reducer_options["density"] == 0.25
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reducer_options": {"densty": 0.5}}, "reducer sage is called 'densty'; did you mean 'density'"),
        ({"reducer_options": {"density": "all"}}, "density is 'all'; allowed is a number"),
        ({"reducer_options": {"density": 2}}, "density"),
        ({"model_options": {"qq": 5}}, "no option of the model resnet is called 'qq'; allowed are depth"),
    ],
)  # fmt: skip
def test_invalid_options_of_parts_are_refused_before_anything_starts(
    workload: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        resolve(load(str(workload), overrides=options))


def test_an_option_of_a_reducer_may_not_have_the_name_of_a_setting_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_lr_option(*, lr: float = 1.0) -> None: ...

    load_part = parts.load
    monkeypatch.setattr(
        parts, "load", lambda kind, name: with_lr_option if kind == "reducers" else load_part(kind, name)
    )
    with pytest.raises(ValueError, match="'sage' has options with the names of settings: lr"):
        part_options(BASE)


# Contents of the files


def test_every_field_has_a_docstring() -> None:
    trees = [ast.parse(inspect.getsource(each)) for each in Config.__mro__[:-1]]
    for body in (node.body for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        for line, below in zip(body, body[1:], strict=False):
            if isinstance(line, ast.AnnAssign):
                assert isinstance(below, ast.Expr), ast.unparse(line)
                assert isinstance(below.value, ast.Constant), ast.unparse(line)


@pytest.mark.parametrize("name", workloads())
@pytest.mark.parametrize("reducer", registry.names("reducers"))
def test_every_workload_can_be_combined_with_every_reducer(name: str, reducer: str) -> None:
    assert resolve(load(name, overrides={"reducer": reducer})).reducer == reducer


@pytest.mark.parametrize(("name", "path"), workloads().items())
def test_every_workload_begins_with_a_one_line_summary(name: str, path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_the_workloads_have_the_published_settings() -> None:
    cnn = load("resnet18-cifar10")
    assert (cnn.batch_size, cnn.lr, cnn.lr_scale, cnn.warmup_epochs, cnn.epochs) == (256, 0.1, 2, 5, 200)
    assert (cnn.momentum, cnn.momentum_kind, cnn.weight_decay, cnn.milestones) == (
        0.9,
        "nesterov",
        1e-4,
        (150, 250),
    )
    lstm = load("lstm-wikitext2")
    assert (lstm.batch_size, lstm.lr, lstm.lr_scale, lstm.clip_local, lstm.milestones) == (
        128,
        1.25,
        2,
        0.4,
        (60, 80),
    )
    ncf = load("ncf-ml20m")
    assert (ncf.batch_size * ncf.world_size, ncf.lr, ncf.beta1, ncf.beta2) == (2**20, 0.0045, 0.25, 0.5)
    assert ncf.reducer_options["density"] == 0.095


def test_the_first_threshold_is_the_published_one() -> None:
    for n, density, published in [
        (11_173_962, 0.001, 4.73e-3), (6_166_250, 0.001, 6.37e-3), (28_949_319, 0.001, 2.938e-3),
        (31_832_577, 0.095, 2.875e-4),
    ]:  # fmt: skip
        assert 1 / (2 * (density * n) ** 0.5) == pytest.approx(published, rel=2e-3)


def test_a_config_is_created_without_importing_torch() -> None:
    code = "import sys, sage.config as c; c.load('digits').folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_option_added_later_does_not_change_the_hash_of_default_runs() -> None:
    def resolved(**options: Any) -> Config:
        return resolve(load("digits", overrides={"reducer": "adacomp+efsign", "reducer_options": options}))

    default = resolved()
    assert set(default.reducer_options) == {"scale_factor", "bins", "conv_bin", "dense_bin"}
    assert resolved(rule="paper").hash == default.hash
    assert resolved(rule="gradcomp").reducer_options["rule"] == "gradcomp"
    assert len({default.hash, resolved(rule="gradcomp").hash, resolved(scale_factor=3.0).hash}) == 3


@dataclass(frozen=True, kw_only=True)
class Longer(Config):
    """A configuration with keys of a later version."""

    warm_restarts: Annotated[int, LATER] = 3
    table: Annotated[dict[str, Any], LATER] = field(default_factory=dict)


@pytest.mark.parametrize("other", [{"warm_restarts": 4}, {"table": {"rate": 1}}])
def test_a_new_key_at_its_default_changes_neither_the_hash_nor_the_file(other: dict[str, Any]) -> None:
    values = BASE.to_dict()
    default = Longer.from_dict(values)
    assert default.hash == BASE.hash
    assert default.to_dict() == values
    changed = Longer.from_dict({**values, **other})
    assert changed.hash != BASE.hash
    assert Longer.from_dict(changed.to_dict()) == changed
    assert Longer.from_dict({**values, "warm_restarts": 3, "table": {}}).hash == BASE.hash


def test_a_new_key_without_the_mark_changes_every_hash() -> None:
    @dataclass(frozen=True, kw_only=True)
    class WithUnmarkedKey(Config):
        warm_restarts: int = 3

    assert replace(BASE).hash == BASE.hash != WithUnmarkedKey.from_dict(BASE.to_dict()).hash


MADE = {
    "reducer": "class Mine(Exact):\n    def __init__(self, *{}) -> None: ...\nREDUCER = Mine",
    "model": "def mine(*{}, num_classes: int) -> torch.nn.Module: ...\nMODEL = mine",
    "data": "class Mine:\n    def __init__(self, root: Path, *{}) -> None: ...\nDATASET = Mine",
}


@pytest.mark.parametrize("part", MADE)
def test_a_new_option_of_a_part_at_its_default_does_not_change_the_hash(part: str, tmp_path: Path) -> None:
    head = (
        "import torch\nfrom pathlib import Path\nfrom typing import Annotated\n"
        "from sage.reducers.exact import Exact\nfrom sage.validate import LATER\n"
    )
    today = write(tmp_path / "today.py", head + MADE[part].format(", depth: int = 2"))
    added = ", depth: int = 2, width: Annotated[int, LATER] = 8"
    tomorrow = write(tmp_path / "tomorrow.py", head + MADE[part].format(added))

    def options(file: Path, **given: Any) -> Any:
        chosen: dict[str, Any] = {part: str(file), f"{part}_options": given}
        config = replace(BASE, **chosen)
        return getattr(resolve(config), f"{part}_options")

    assert options(tomorrow) == options(today) == {"depth": 2}
    assert options(tomorrow, width=8) == {"depth": 2}
    assert options(tomorrow, width=9) == {"depth": 2, "width": 9}


# Output of `sage run ... --print-config` on 28 November 2026; runs recorded then must be found again.
FOLDERS = {
    "digits-ff --reducer exact": "digits-ff-exact-1a2e8805",
    "digits-ff --reducer sage": "digits-ff-sage-d67f53eb",
    "digits --reducer topk --density .05": "digits-topk-6fcae8d9",
    "digits --reducer topk+terngrad": "digits-topk+terngrad-fc451f14",
    "digits --reducer dgc --memory momentum --momentum 0": "digits-dgc-044ec0e2",
    "ncf-imports --reducer sidco --epochs 2 --seed 3": "ncf-imports-sidco-43a0f916",
    "lstm-topics --reducer onebit --world-size 4": "lstm-topics-onebit-a99fc568",
    "lstm-wikitext2 --reducer powersgd --rank 4 --grouping bucket:25": "lstm-wikitext2-powersgd-40f9c08e",
    "resnet20-cifar10 --reducer efsignsgd --data.limit-train 512": "resnet20-cifar10-efsignsgd-e0ef6a24",
    "ncf-ml1m --reducer adacomp --rule gradcomp": "ncf-ml1m-adacomp-6871be58",
    # Before these had --start.
    "digits --reducer micro --start published": "digits-micro-365d8697",
    "digits --reducer exdyna --start published": "digits-exdyna-ee54d298",
    "digits --reducer threshold --start published": "digits-threshold-bbbef7fd",
    "digits --reducer threshold+terngrad --start published": "digits-threshold+terngrad-bd53220d",
}


@pytest.mark.parametrize("flags", FOLDERS)
def test_recorded_runs_keep_their_folder_names(flags: str) -> None:
    config = parse_run(flags.split())
    assert config.folder.name == FOLDERS[flags]


def test_flags_and_configuration_give_the_same_folder_for_options_added_later() -> None:
    for flags in ([], ["--rule", "gradcomp"]):
        config = parse_run(["digits", "--reducer", "adacomp", *flags])
        options = {"rule": "gradcomp"} if flags else {}
        expected = resolve(load("digits", overrides={"reducer": "adacomp", "reducer_options": options}))
        assert config.hash == expected.hash


@pytest.mark.parametrize("reducer", ["micro", "exdyna", "threshold", "threshold+terngrad"])
def test_a_changed_default_gives_new_names_and_its_former_value_the_recorded_names(
    reducer: str,
) -> None:
    default, published = (
        parse_run(["digits", "--reducer", reducer, *more]) for more in ([], ["--start", "published"])
    )
    assert default.reducer_options["start"] == "gradient"
    assert published.reducer_options["start"] == "published"
    assert default.hash != published.hash
    for config in (default, published):
        assert resolve(config) == Config.from_dict(config.to_dict()) == recorded(config.to_dict()) == config
    values = published.to_dict()
    del values["reducer_options"]["start"]  # as it was recorded before the option existed
    assert recorded(values) == published
    assert recorded(values).hash == published.hash
