"""A hook of mkdocs: writes the parts of the reference that come from the code, when the site is built.

A line `<!-- generated: NAME -->` of a page is replaced by what `GENERATED[NAME]` returns.
"""

import ast
import inspect
import io
import re
import sys
import types
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sage import config, registry, storage  # noqa: E402
from sage.cli.main import main  # noqa: E402
from sage.predict import calibration_schema as schema  # noqa: E402
from sage.registry import Option, PartKind  # noqa: E402

MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def reducers() -> str:
    """A section for each reducer of the repository."""
    return parts("reducers")


def parts(part_kind: PartKind) -> str:
    """A section for each part: its summary, its docstring, its options and its file."""
    return "\n\n".join(_part(part_kind, name) for name in registry.names(part_kind))


def _part(part_kind: PartKind, name: str) -> str:
    part = registry.load(part_kind, name)
    text = inspect.getdoc(part) or ""
    text = re.split(r"^(?:Args|Raises|Returns):$", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
    options = {} if part_kind == "tasks" else registry.options_of(part_kind, name)
    source = Path(inspect.getsourcefile(inspect.unwrap(part)) or "").resolve().relative_to(ROOT)
    return "\n\n".join(
        [
            f"### `{name}` {{ #{part_kind}-{name} }}",
            registry.summary(part_kind, name),
            text,
            *([] if "ayload" in text else _inherited_payload(part)),
            _table(options) if options else "It has no options.",
            f"Source: `{source.as_posix()}`.",
        ]
    )


def _inherited_payload(part: Any) -> list[str]:
    """The paragraphs on payload bytes of the part's base classes, each with the list that follows."""
    found = []
    for base in inspect.getmro(part)[1:] if inspect.isclass(part) else []:
        paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(vars(base).get("__doc__") or ""))
        for paragraph, after in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
            if "ayload bytes" in paragraph and not paragraph.startswith("Args:"):
                found += [paragraph, *([after] if paragraph.endswith(":") else [])]
    return found


def _table(options: Mapping[str, Option]) -> str:
    head = "| option | values | default | meaning |\n|---|---|---|---|\n"
    rows = (
        f"| `{name}` | {kind(option.type)} | `{_plain(option.default)}` | {_cell(option.help)} |"
        for name, option in options.items()
    )
    return head + "\n".join(rows)


def kind(annotation: Any) -> str:
    """The values that a type allows, as a reader of the reference needs them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return ", ".join("none" if each is type(None) else kind(each) for each in arguments)
    if origin is tuple:
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return "table"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plain(value: Any) -> str:
    """A value as TOML and the command line have it."""
    words = {"None": "none", "True": "true", "False": "false"}
    return words.get(str(value), str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def workloads() -> str:
    """A section for each workload: its first comment and its file."""
    sections = []
    for name, path in config.workloads().items():
        text = path.read_text(encoding="utf-8")
        comment, _, rest = text.partition("\n")
        sections.append(f"### `{name}`\n\n{comment.lstrip('# ')}\n\n```toml\n{rest.strip()}\n```")
    return "\n\n".join(sections)


def configuration() -> str:
    """A table of the fields of a run's configuration: values, default, meaning, whether the hash has it."""
    trees = [ast.parse(inspect.getsource(each)).body[0] for each in config.Config.__mro__[:-1]]
    meanings: dict[str, str] = {}
    last = ""
    for node in (node for tree in trees if isinstance(tree, ast.ClassDef) for node in tree.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            meanings[last] = str(node.value.value)
            last = ""
    rows = ["| key | values | default | in the hash | meaning |", "|---|---|---|---|---|"]
    for name, meaning in meanings.items():
        annotation = config.annotations()[name]
        default = getattr(config.Config, name, inspect.Parameter.empty)
        shown = "" if default is inspect.Parameter.empty else f"`{_plain(default) or '()'}`"
        counts = "no" if config.NOT_HASHED in get_args(annotation) else "yes"
        rows.append(f"| `{name}` | {kind(annotation)} | {shown} | {counts} | {_cell(meaning)} |")
    return "\n".join(rows)


def commands() -> str:
    """The help text of every command, and of the commands within one; what has no help is no command."""
    top = _help()
    sections = [f"## `sage`\n\n```text\n{top}\n```"]
    for name in _listed(top):
        text = _help(name)
        sections.append(f"## `sage {name}`\n\n```text\n{text}\n```")
        for inner in _listed(text):
            if more := _help(name, inner):
                sections.append(f"### `sage {name} {inner}`\n\n```text\n{more}\n```")
    return "\n\n".join(sections)


def _listed(text: str) -> list[str]:
    """The commands that a help text lists, one on each indented line."""
    return re.findall(r"^ {1,4}([a-z][a-z-]*) {2,}\S", text, flags=re.MULTILINE)


def _help(*words: str) -> str:
    """What a command prints for --help; nothing where it knows no such command."""
    with redirect_stdout(io.StringIO()) as written, redirect_stderr(io.StringIO()):
        status = main([*words, "--help"])
    return "" if status else written.getvalue().strip()


def files() -> str:
    """The keys of each kind of JSON file, from its schema; an optional key ends with a question mark."""
    kinds = {
        "config.json": storage.CONFIG,
        "manifest.json": storage.MANIFEST,
        "result.json": storage.RESULT,
        "failure.json": storage.FAILURE,
        "metrics.jsonl": storage.METRICS,
    }
    sections = []
    for name, each in kinds.items():
        rows = [f"| `{key}` | {_typed(value)} |" for key, value in each.keys.items()]
        for variant, keys in each.variants.items():
            rows += [f"| `{key}` of `{variant}` | {_typed(value)} |" for key, value in keys.items()]
        sections.append(f"### Keys of `{name}`\n\n| key | type |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(sections)


def calibration() -> str:
    """The keys of a calibration's file and of the objects in it, from their schema."""
    parts = {
        "The file": schema.CALIBRATION,
        "`model`": schema.MODEL,
        "An object of `parameters`": schema.PARAMETER,
        "An object of `links`": schema.SAMPLES,
        "An object of `methods`": schema.METHOD,
        "An object of the lists in `messages`": schema.MESSAGE,
    }
    rows = [
        f"| {part} | `{key}` | {_typed(value)} |"
        for part, of in parts.items()
        for key, value in of.keys.items()
    ]
    return "| object | key | type |\n|---|---|---|\n" + "\n".join(rows)


def _typed(value: Any) -> str:
    if isinstance(value, dict):
        return "object: " + ", ".join(f"`{key}`" for key in value)
    if get_origin(value) is dict:
        inner = get_args(value)[1]
        return "object" if inner is Any else f"object of {_typed(inner)}"
    if get_origin(value) is list:
        return f"list of {_typed(get_args(value)[0])}"
    return kind(value)


GENERATED = {
    "files": files,
    "calibration": calibration,
    "reducers": reducers,
    "models": lambda: parts("models"),
    "datasets": lambda: parts("datasets"),
    "tasks": lambda: parts("tasks"),
    "workloads": workloads,
    "configuration": configuration,
    "commands": commands,
}
