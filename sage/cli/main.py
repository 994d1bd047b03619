"""The command `sage`: its subcommands, and the exit status and message for each error."""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from .. import __version__
from ..exit_status import (
    FAILED,
    FATAL,
    KEYBOARD,
    PIPE_CLOSED,
    exit_on_early_signals,
    handle_sigint,
    message,
    notify_job,
    status_of,
)
from ..output import streams
from ..train.garbage import pause_collection, resume_collection
from .group import Group

COMMANDS = {
    "run": (".run", "Train a workload with a reducer."),
    "submit": (".submit", "Submit a sweep: run those of its runs that are neither finished nor active."),
    "target": (".target", "Fix the targets of a sweep from its pilot runs."),
    "status": (".status", "Show the states of a sweep's runs, or of all runs in a folder."),
    "cancel": (".cancel", "Cancel the active jobs of runs, or of all runs of a sweep."),
    "logs": (".logs", "Print the log of a run's newest job."),
    "launch": (".launch", "Start one run on several hosts over ssh."),
    "doctor": (".doctor", "Check nodes and network before a run."),
    "report": (".report", "Compare runs."),
    "compare": (".compare", "Compare two result sets."),
    "sync": (".sync", "Upload runs to the URL of their folder, as far as they are not there."),
    "published": (
        ".published",
        "List the published tables that SAGE has as data, and compare runs with them.",
    ),
    "predict": (".predict", "Predict step times at other world sizes and links, from a calibration."),
    "list": (".list", "List the reducers, models, data sets, tasks and workloads."),
    "data": (".data", "List the data sets, or prepare one."),
    "conform": (".conform", "Check a reducer against the invariants that all reducers keep."),
    "bench": (".bench", "Measure reducers and density controllers."),
    "advise": (".advise", "Recommend a reducer and a mount for a workload on this cluster."),
    "calibrate": (".calibrate", "Measure a cluster, a model and reducers for `sage predict`."),
}
"""The module of each subcommand, and its summary."""

COMPLETE = "_SAGE_COMPLETE"
"""The variable with which a shell requests completions (docs/reference/command-line.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (docs/reference/exit-statuses.md); raise no exceptions."""
    streams.protect()
    os.umask(os.umask(0o077) & 0o077)  # the owner can use created files under any umask
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv and argv[0] in COMMANDS else ""
    name = " ".join(["sage", command]).strip()
    if command == "run":  # a signal that comes while torch is imported is that of a run that was stopped
        exit_on_early_signals()
        pause_collection()
    else:
        handle_sigint()
    try:
        status = _invoke(argv)
        lost = streams.failure() if command not in ("run", "submit", "launch") else None
        if lost is None:
            return status
        if isinstance(lost, BrokenPipeError):
            return PIPE_CLOSED
        return _refuse(name, f"cannot write to standard output: {message(lost)}", FAILED)
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _refuse(name, "interrupted", KEYBOARD)
    except RecursionError:
        return _refuse(name, "the input is nested too deeply", FATAL)
    except MemoryError as error:
        return _refuse(name, f"out of memory ({message(error)})", FAILED)
    except (ValueError, OSError) as error:
        return _refuse(name, message(error), status_of(error))
    except Exception as error:
        traceback.print_exc()
        text = f"this is a bug in SAGE: {type(error).__name__}: {message(error)}"
        advice = "please report it to SAGE's issue tracker, with the command and the lines above"
        return _refuse(name, f"{text}; {advice}", FAILED)
    finally:
        resume_collection()


def _invoke(argv: list[str]) -> int:
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "sage", COMPLETE, instruction)
    if argv == ["help"]:
        argv = ["--help"]
    try:
        with root.make_context("sage", argv) as context:
            return int(root.invoke(context))
    except click.exceptions.Exit as end:  # help, or the version, has been printed
        return end.exit_code


def _refuse(name: str, text: str, status: int) -> int:
    print(f"{name}: {text}", file=sys.stderr)
    notify_job(status, text)
    return status


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        print(f"sage {__version__}")
        context.exit()


root = Group(
    "sage",
    COMMANDS,
    help="A SLURM-native benchmark suite for gradient compression in distributed PyTorch training.",
)
root.params.append(
    click.Option(
        ["-V", "--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version.",
    )
)
