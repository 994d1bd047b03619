"""`sage VERB`: the command line, which imports a verb's own module only when it is called."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .. import __version__, registry
from ..config import workloads
from ..exit_status import (
    FAILED,
    HOPELESS,
    KEYBOARD,
    PIPE_CLOSED,
    hear_sigint,
    message,
    status_of,
    stop_before_it_begins,
    tell_the_job,
)
from ..output import streams
from ..validate import known
from .parser import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (docs/reference/exit-statuses.md); nothing is raised."""
    streams.protect()
    hear_sigint()
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = argv[0] if argv and argv[0] in VERBS else ""
    name = " ".join(["sage", verb]).strip()
    try:
        status = _dispatch(argv)
        lost = streams.failure() if verb not in ("run", "submit", "launch") else None
        if lost is None:
            return status
        if isinstance(lost, BrokenPipeError):
            return PIPE_CLOSED
        return _refuse(name, f"cannot write to standard output: {message(lost)}", status_of(lost))
    except SystemExit as error:  # argparse has printed its help
        return error.code if isinstance(error.code, int) else 0
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _refuse(name, "interrupted", KEYBOARD)
    except RecursionError:
        return _refuse(name, "what was given is nested too deeply", HOPELESS)
    except MemoryError as error:
        return _refuse(name, f"out of memory ({message(error)})", FAILED)
    except (ValueError, OSError) as error:
        return _refuse(name, message(error), status_of(error))
    except Exception as error:
        traceback.print_exc()
        text = f"this is a bug in SAGE: {type(error).__name__}: {message(error)}"
        advice = "please report it to SAGE's issue tracker, with the command and the lines above"
        return _refuse(name, f"{text}; {advice}", FAILED)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"sage {__version__}")
        return 0
    return VERBS[known("verb", argv[0], VERBS)](argv[1:])


def _refuse(name: str, text: str, status: int) -> int:
    print(f"{name}: {text}", file=sys.stderr)
    tell_the_job(status, text)
    return status


def run(argv: Sequence[str]) -> int:
    """Train a workload under a reducer: sage run [WORKLOAD] [--reducer NAME] [--help] ..."""
    # Before the flags import torch: a dead peer is reported in our words, not by the store's stack traces.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    stop_before_it_begins()
    from .flags import parse_run

    config, only_print = parse_run(argv)
    if only_print:
        from ..comm.rendezvous import place
        from ..train.preflight import check

        check(config, here=place() is None)
        print(json.dumps({"folder": str(config.folder), "config": config.to_dict()}, indent=2))
        return 0
    from ..train.run import main as run_main

    return run_main(config)


def submit(argv: Sequence[str]) -> int:
    """Run a suite's cells as SLURM jobs, those that are missing: sage submit SUITE.toml [--help] ..."""
    from ..jobs.submit import main as submit_main

    return submit_main(argv)


def status(argv: Sequence[str]) -> int:
    """Say how far the cells of a suite are: sage status [SUITE.toml] [--watch]"""
    from ..jobs.status import main as status_main

    return status_main(argv)


def cancel(argv: Sequence[str]) -> int:
    """End the jobs of cells: sage cancel [SUITE.toml | CELL ...]"""
    from ..jobs.status import cancel as cancel_main

    return cancel_main(argv)


def logs(argv: Sequence[str]) -> int:
    """Print what a cell's job has said: sage logs CELL [--follow]"""
    from ..jobs.status import logs as logs_main

    return logs_main(argv)


def launch(argv: Sequence[str]) -> int:
    """Run ranks on bare nodes over ssh: sage launch --hosts hosts.txt [WORKLOAD] ..."""
    from ..cluster.launch import main as launch_main

    return launch_main(argv)


def doctor(argv: Sequence[str]) -> int:
    """Examine the nodes before a run does: sage doctor [--hosts hosts.txt]"""
    from ..cluster.doctor.command import main as doctor_main

    return doctor_main(argv)


def list_(argv: Sequence[str]) -> int:
    """List the reducers, models, data sets, tasks and workloads."""
    _parser("list").parse_args(argv)
    found = {
        "reducers": {name: registry.summary("reducers", name) for name in registry.names("reducers")},
        "models": {name: registry.summary("models", name) for name in registry.names("models")},
        "data sets": {name: registry.summary("datasets", name) for name in registry.names("datasets")},
        "tasks": {name: registry.summary("tasks", name) for name in registry.names("tasks")},
        "workloads": {name: _first_comment(path) for name, path in workloads().items()},
    }
    width = max(len(name) for room in found.values() for name in room)
    print("\n\n".join("\n".join([f"{title}:", *_table(room, width)]) for title, room in found.items()))
    return 0


def report(argv: Sequence[str]) -> int:
    """Write tables and pages of finished runs: sage report [RUNS ...] [--output DIR]"""
    parser = _parser("report")
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them"
    )
    parser.add_argument("--output", type=Path, help="where to write; else the first of the paths")
    given = parser.parse_args(argv)
    from ..report.report import main as report_main

    return report_main(given.paths, given.output or given.paths[0])


def data(argv: Sequence[str]) -> int:
    """Prepare a data set, or list them: sage data prepare NAME [ROOT] [--help] ..., sage data list"""
    sets = {name: registry.summary("datasets", name) for name in registry.names("datasets")}
    if argv[:1] == ["list"]:
        Parser(prog="sage data list", description="List the data sets.").parse_args(argv[1:])
        print("\n".join(_table(sets)))
        return 0
    if _asks_for_help(argv) or (argv[:1] == ["prepare"] and _asks_for_help(argv[1:])):
        forms = ["sage data list", "sage data prepare NAME [ROOT] [--FLAG VALUE ...]"]
        note = "`sage data prepare NAME --help` shows the options of one data set."
        print(_forms(data, forms, {"the data sets": sets}, note))
        return 0
    if argv[:1] != ["prepare"] or not argv[1:] or argv[1].startswith("-"):
        raise ValueError(f"say `data list`, or `data prepare NAME` with one of: {', '.join(sets)}")
    name, rest = argv[1], argv[2:]
    prepare = getattr(registry.load("datasets", name), "prepare", None)
    if not callable(prepare):
        raise ValueError(
            f"the data set {name} has no `prepare`; add a static method prepare(root) to its class"
        )
    from ..data.dataset import data_root
    from .flags import parse_options

    root = None
    if rest and not rest[0].startswith("-"):
        root, rest = Path(rest[0]), rest[1:]
    where = registry.Option(
        Path | None, root, "Where data sets are kept; none given: $SAGE_DATA_DIR, else ./data."
    )
    options = {"root": where, **registry.options(prepare)}
    given = parse_options(
        rest, options, prog=f"sage data prepare {name}", description=registry.summary("datasets", name)
    )
    prepare(data_root(given.pop("root")), **given)
    return 0


def conform(argv: Sequence[str]) -> int:
    """Hold a reducer against the laws that all must keep: sage conform NAME [--help] ..."""
    if _asks_for_help(argv):
        reducers = {name: registry.summary("reducers", name) for name in registry.names("reducers")}
        note = "`sage conform NAME --help` shows the options of one; NAME may be a file too, as ./mine.py."
        print(_forms(conform, ["sage conform NAME [--FLAG VALUE ...]"], {"the reducers": reducers}, note))
        return 0
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"say which reducer: one of {', '.join(registry.names('reducers'))}")
    name = argv[0]
    own = registry.options(registry.load("reducers", name))
    from .flags import parse_options

    sizes = registry.Option(tuple[int, ...], (1, 2, 4), "Numbers of ranks to try.")
    summary = registry.summary("reducers", name)
    options = {"world_sizes": sizes, **own}
    given = parse_options(argv[1:], options, prog=f"sage conform {name}", description=summary)
    from ..testing.conformance import main as conform_main

    return conform_main(name, given, given.pop("world_sizes"))


def bench(argv: Sequence[str]) -> int:
    """Measure the parts: sage bench compress ..., bench record WORKLOAD --out FILE, bench density FILE ..."""
    if _asks_for_help(argv):
        forms = [f"sage bench {name} ..." for name in BENCHES]
        note = "`sage bench NAME --help` shows the options of one."
        print(_forms(bench, forms, {"the benchmarks": BENCHES}, note))
        return 0
    if not argv or argv[0] not in BENCHES:
        raise ValueError(f"say which: {', '.join(f'bench {name}' for name in BENCHES)}")
    module = importlib.import_module(f"sage.bench.{argv[0]}")
    status: int = module.main(argv[1:])
    return status


BENCHES = {
    "record": "Train a workload for some steps and keep the gradients in a file.",
    "density": "Replay recorded gradients under each controller, and measure the density.",
    "compress": "Measure the time and the bytes of every reducer, without a network.",
}
"""What `sage bench` measures, each by a module's main."""

VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "submit": submit,
    "status": status,
    "cancel": cancel,
    "logs": logs,
    "launch": launch,
    "doctor": doctor,
    "report": report,
    "list": list_,
    "data": data,
    "conform": conform,
    "bench": bench,
}


def _help() -> str:
    summaries = {name: (verb.__doc__ or "").partition("\n")[0] for name, verb in VERBS.items()}
    lines = ["usage: sage VERB ...", "", *_table(summaries), "", "`sage VERB --help` says more of one."]
    return "\n".join(lines)


def _asks_for_help(argv: Sequence[str]) -> bool:
    return argv[:1] in (["-h"], ["--help"])


def _forms(
    verb: Callable[[Sequence[str]], int],
    forms: Sequence[str],
    tables: Mapping[str, Mapping[str, str]],
    note: str,
) -> str:
    """The help of a verb that has verbs or names below it."""
    said = (verb.__doc__ or "").partition(":")[0]
    lines = ["usage: " + "\n       ".join(forms), "", f"{said}."]
    for title, rows in tables.items():
        lines += ["", f"{title}:", *_table(rows)]
    return "\n".join([*lines, "", note])


def _table(rows: Mapping[str, str], width: int = 0) -> list[str]:
    width = width or max(map(len, rows))
    return [f"  {name:{width}}  {line}".rstrip() for name, line in rows.items()]


def _parser(verb: str) -> Parser:
    return Parser(prog=f"sage {verb}", description=VERBS[verb].__doc__)


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").removeprefix("#").strip()
