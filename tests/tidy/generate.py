"""Writes the generated pages of docs/operating: run it after a command, key, metric or error changed."""

from __future__ import annotations

import importlib
import io
import pkgutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import dwcp
from dwcp.cli.main import COMMANDS, Entry, group, load_command, overview
from dwcp.runtime.config import ServiceConfig, Settings
from dwcp.runtime.errors import Exit, RuntimeFault
from dwcp.runtime.failpoints import POINTS
from dwcp.runtime.runs import OperationsConfig
from dwcp.runtime.telemetry import METRICS
from dwcp.runtime.world import World

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operating"
NOTE = "<!-- Made by `make docs`; a test compares it with the program. -->\n\n"
MISSING = "**undocumented**"


def modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(dwcp.__path__, "dwcp."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def config_page() -> str:
    """Every key of every configuration file, from the shapes themselves."""
    shapes: dict[str, type] = {"World": World, "OperationsConfig": OperationsConfig}
    for module in modules():
        for member in vars(module).values():
            if (
                isinstance(member, type)
                and issubclass(member, ServiceConfig)
                and member.__module__ == module.__name__
            ):
                shapes[member.__name__] = member
    lines = ["# Configuration\n", NOTE.strip() + "\n"]
    lines.append("`cluster.yaml` is `World`; the other files in `conf/` are made from it at each start.\n")
    nested: dict[str, type] = {}
    for name, shape in sorted(shapes.items()):
        lines += _shape(name, shape, nested)
    done: set[str] = set(shapes)
    while left := {name: shape for name, shape in nested.items() if name not in done}:
        for name, shape in sorted(left.items()):
            done.add(name)
            lines += _shape(name, shape, nested)
    return "\n".join(lines)


def _shape(name: str, shape: type, nested: dict[str, type]) -> list[str]:
    info = msgspec.inspect.type_info(shape)
    assert isinstance(info, msgspec.inspect.StructType)
    first = (shape.__doc__ or MISSING).strip().splitlines()[0]
    lines = [f"## {name}\n", first + "\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    for field in info.fields:
        kind, meaning = _describe(field.type, nested)
        default = "required" if field.required else f"`{_default(field)}`"
        lines.append(f"| `{field.encode_name}` | {kind} | {default} | {meaning or MISSING} |")
    return [*lines, ""]


def _default(field: msgspec.inspect.Field) -> object:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
    if isinstance(value, Settings):
        return type(value).__name__
    return getattr(value, "__name__", value)


def _describe(kind: msgspec.inspect.Type, nested: dict[str, type]) -> tuple[str, str]:
    meaning = ""
    while isinstance(kind, msgspec.inspect.Metadata):
        meaning = meaning or str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    return _type_name(kind, nested), meaning


def _type_name(kind: msgspec.inspect.Type, nested: dict[str, type]) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _type_name(kind.type, nested)
    if isinstance(kind, msgspec.inspect.StructType):
        if not issubclass(kind.cls, Settings):  # a shape of the API: its own docstring says the units
            return f"{kind.cls.__name__} ({', '.join(field.encode_name for field in kind.fields)})"
        nested[kind.cls.__name__] = kind.cls
        return kind.cls.__name__
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(_type_name(option, nested) for option in kind.types)
    if isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        return f"list of {_type_name(kind.item_type, nested)}"
    if isinstance(kind, msgspec.inspect.CustomType):
        return kind.cls.__name__.lower()
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in sorted(map(str, kind.values)))
    return type(kind).__name__.removesuffix("Type").lower()


def metrics_page() -> str:
    lines = ["# Metrics\n", NOTE.strip() + "\n", "Every service shows them at `/metrics`.\n"]
    lines += ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join([*lines, ""])


def errors_page() -> str:
    """Every fault that an operator can meet, with its exit code and what to do."""
    lines = ["# Errors\n", NOTE.strip() + "\n", "| exit code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {code.name.lower()} |" for code in Exit]
    lines += ["", "| error | exit code | what it means and what to do |", "|---|---|---|"]
    found = {}
    for module in modules():
        for member in vars(module).values():
            ours = (
                isinstance(member, type)
                and issubclass(member, Exception)
                and member.__module__ == module.__name__
            )
            if ours and not member.__name__.startswith("_"):
                found[f"{module.__name__}.{member.__name__}"] = member
    for name, member in sorted(found.items(), key=lambda item: item[0].rpartition(".")[2]):
        code = str(int(member.exit_code)) if issubclass(member, RuntimeFault) else "-"
        text = " ".join((member.__doc__ or MISSING).split())
        lines.append(f"| `{name.rpartition('.')[2]}` | {code} | {text} |")
    return "\n".join([*lines, ""])


def cli_page() -> str:
    lines = ["# The command line\n", NOTE.strip() + "\n", "```", overview().rstrip(), "```\n"]
    for entry in COMMANDS:
        for path, text in _helps(entry):
            lines += [f"## {path}\n", "```", text.rstrip(), "```\n"]
    return "\n".join(lines)


def _helps(entry: Entry) -> Iterator[tuple[str, str]]:
    root = group().make_context("dwcp", [], resilient_parsing=True)
    command = load_command(entry)
    yield from _help_of(command, f"dwcp {entry.name}", entry.name, root)


def _help_of(command: Any, path: str, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    # Any: Typer's commands have no public type
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = 100
    yield path, command.get_help(context)
    for child, sub in sorted(getattr(command, "commands", {}).items()):
        yield from _help_of(sub, f"{path} {child}", child, context)


def failpoints_page() -> str:
    lines = ["# Failpoints\n", NOTE.strip() + "\n", "Only where the configuration says `testing: true`.\n"]
    lines += ["| point | the moment |", "|---|---|"]
    lines += [f"| `{name}` | {sentence} |" for name, sentence in POINTS.items()]
    return "\n".join([*lines, ""])


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
    "failpoints.md": failpoints_page,
}


def main() -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        out.write(f"{name}\n")
    print(out.getvalue(), end="")


if __name__ == "__main__":
    main()
