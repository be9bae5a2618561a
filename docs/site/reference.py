"""Pages of the documentation that are generated: hooks of MkDocs, named by mkdocs.yml.

Commands are described as `poolctl help` declares them, keys as `poolctl config --schema` does, with the examples of the
TOML files beside this one. Files at the top of the repository that belong to the documentation become pages, too.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
import typer
from manual import in_panel
from metrics import metrics
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import poolctl
from poolctl import exit_codes
from poolctl.cli.app import app
from poolctl.config.rules.json_schema import json_schema
from poolctl.features.kubernetes._keys import IGNORED, UNSUPPORTED
from poolctl.features.kubernetes._routes import ROUTE_IGNORED, ROUTE_UNSUPPORTED
from poolctl.units import format_duration, format_size

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(Path(__file__).parent.glob("*.toml"))
# Files outside docs/ that are pages of the site, by their path in the repository.
OUTSIDE = {
    "README.md": "index.md",
    "SECURITY.md": "reporting.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples.md",
    "examples/README.md": "examples.md",
}
# Pages that answer few questions come last in what the search finds.
BOOSTS = {
    "reference/": 0.3,
    "reference/python": 0.05,
    "changelog": 0.1,
    "architecture": 0.3,
    "internals": 0.2,
    "decisions/": 0.2,
    "contributing": 0.3,
    "reporting": 0.5,
    "how-do-i": 2,
    "troubleshooting": 1.5,
}
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([\w./-]+)(#[\w-]+)?\)")
Schema = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/commands.md": commands(),
        "reference/exit-codes.md": exit_code_table(),
        "reference/metrics.md": metrics(),
        "reference/not-exported.md": not_exported(),
        "reference/python.md": python(),
        **{f"reference/keys/{table}.md": text for table, text in keys().items()},
        **{name: (ROOT / path).read_text() for path, name in OUTSIDE.items() if path.endswith(".md")},
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the page of a file of the repository; without a page, name its path instead."""
    outside = {name: path for path, name in OUTSIDE.items()}.get(page.file.src_uri)
    for begin, boost in BOOSTS.items():
        if page.file.src_uri.startswith(begin):
            page.meta["search"] = {"boost": boost}
    if page.file.src_uri.startswith("reference/"):
        return markdown
    directory = (ROOT / (outside or f"docs/{page.file.src_uri}")).parent

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = os.path.relpath(directory / target, ROOT)
        if (name := OUTSIDE.get(path)) or path.startswith("docs/"):
            page_path = os.path.relpath(name or path.removeprefix("docs/"), Path(page.file.src_uri).parent)
            return f"[{text}]({page_path}{anchor or ''})"
        return f"{text} (`{path}` in the repository)"

    return LINK.sub(led, markdown).replace('"docs/images/', '"images/')


def commands() -> str:
    """Every command with its options and examples, in the order of `poolctl help --all`."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Generated from the declarations that `poolctl help COMMAND` prints.",
        "Every command takes these options, before or after its name:",
        _option_table(in_panel(group.imported("list"), "Global options")),
    ]
    for panel in dict.fromkeys(each.rich_help_panel for each in group.commands.values()):
        parts.append(f"## {panel}")
        for name, listed in group.commands.items():
            if listed.rich_help_panel == panel:
                parts += _command(name, group.imported(name))
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    help, *notes = command.help.split("\n\n")
    own, selection = in_panel(command, None), in_panel(command, "Selection")
    yield f"### {name}"
    yield _markdown(help)
    context = typer.Context(command, info_name=name)
    yield f"```text\npoolctl {name} {' '.join(command.collect_usage_pieces(context))}\n```"
    if own:
        yield _option_table(own)
    if selection:
        yield "Options that select servers:"
        yield _option_table(selection)
    for each in notes:
        yield _markdown(" ".join(each.split()))
    if command.epilog:
        yield "```text\n" + "\n".join(command.epilog.split("\n\n")[1:]) + "\n```"


def _option_table(options: list[Any]) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for each in options:
        is_option = each.param_type_name == "option"
        metavar = "" if is_option and each.is_flag else (each.metavar or "").strip("[].")
        spelled = ", ".join(f"`{one}`" for one in each.opts if is_option)
        names = " ".join(filter(None, (spelled, metavar and f"`{metavar}`")))
        rows.append(f"| {names} | {_cell(_markdown(each.help or ''))} |")
    return "\n".join(rows)


def exit_code_table() -> str:
    """The exit codes, with their names in JSON."""
    rows = ["# Exit codes", "", "| code | `error` in JSON |", "|---|---|"]
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    for code in sorted(codes):
        name = exit_codes.NAMES.get(code)
        rows.append(f"| `{code}` | {f'`{name}`' if name else 'none: done'} |")
    rows += ["", "[Commands](../commands.md#exit-codes) says when a command ends with which.", ""]
    return "\n".join(rows)


def not_exported() -> str:
    """The keys that an export to Kubernetes leaves out or refuses."""
    parts = [
        "# Keys that are not exported",
        "What `poolctl export kubernetes` leaves out, or refuses, and why.",
    ]
    for what, ignored, refused in (
        ("a server", IGNORED, {key: reason for key, (_, reason, _) in UNSUPPORTED.items()}),
        ("a route", ROUTE_IGNORED, {key: reason for key, (reason, _) in ROUTE_UNSUPPORTED.items()}),
    ):
        parts.append(f"## Keys of {what}")
        for title, reasons in (("left out, with a warning", ignored), ("refused", refused)):
            rows = [f"| `{key}` | {reason} |" for key, reason in reasons.items()]
            parts.append("\n".join((f"| {title} | because |", "|---|---|", *rows)))
    return "\n\n".join(parts) + "\n"


def python() -> str:
    """The public names of the package, for mkdocstrings: classes before functions."""
    parts = ["# Python", "Generated from the signatures and docstrings of the public names of `poolctl`."]
    for name in poolctl.__all__:
        if not name.startswith("_"):
            found = getattr(poolctl, name)
            parts.append(f"::: {found.__module__}.{found.__qualname__}\n    options:\n      heading_level: 2")
    return "\n\n".join(parts) + "\n"


def keys() -> dict[str, str]:
    """A page for each table of the configuration, by the table's name; keys of tables within it included."""
    schema = json_schema()
    reference = _Keys(schema)
    pages = {}
    for table, declared in schema["properties"].items():
        parts = [f"# {_head(table, declared)}", _markdown(declared["description"])]
        if table == "defaults":
            parts.append("Its keys are the keys of a [`[[server]]`](server.md) but its `name`.")
        else:
            parts += reference.entries(table)
        pages[table] = "\n\n".join(parts) + "\n"
    return pages


class _Keys:
    """Writes the keys of tables; a table that is used several times is described where it is used first."""

    def __init__(self, schema: Schema) -> None:
        self._tables = schema["properties"]
        self._definitions = schema["$defs"]
        self._described: dict[str, tuple[str, str]] = {}  # definitions: page, and key
        self._examples = _examples()
        self._of_definitions = {
            (definition, key): value
            for table in self._tables
            for definition, path in self._uses(_references(self._tables[table])[0], (table,))
            for key in self._definitions[definition]["properties"]
            if (value := self._examples.get((*path, key))) is not None
        }

    def _uses(self, definition: str, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield definition, path
        for key, declared in self._definitions[definition]["properties"].items():
            for inner in _references(declared):
                yield from self._uses(inner, (*path, key))

    def entries(self, table: str) -> Iterator[str]:
        """The keys of a table of the file."""
        yield from self._entries(table, _references(self._tables[table])[0], ())

    def _entries(self, table: str, definition: str, above: tuple[str, ...]) -> Iterator[str]:
        for key, declared in self._definitions[definition]["properties"].items():
            if declared.get("deprecated"):
                continue
            path = (*above, key)
            name = ".".join(path)
            yield f"## {name}" if not above else f"### {name}"
            yield _markdown(declared["description"])
            yield _facts(declared)
            example = self._examples.get((table, *path), self._of_definitions.get((definition, key)))
            if example is not None:
                for end in range(1, len(path)):
                    # A key of a table in a list is shown with the others.
                    if isinstance(whole := self._examples.get((table, *path[:end])), list):
                        path, example = path[:end], whole
                        break
                yield _in_table(_head(table, self._tables[table]), path, example)
            for inner in _references(declared):
                if inner in self._described:
                    page, known = self._described[inner]
                    yield f"Its keys are those of [{known}]({page}.md#{_anchor(known)})."
                else:
                    self._described[inner] = table, name
                    yield from self._entries(table, inner, path)


def _facts(declared: Schema) -> str:
    facts = [_kind(declared)]
    low, high = (_of_number(declared, bound) for bound in ("minimum", "maximum"))
    if low is not None or high is not None:
        facts.append(f"Range: {_range(low, high, declared.get('unit'))}")
    if "default" in declared:
        facts.append(f"Default: `{_toml(declared['default'])}`")
    return " · ".join(facts)


def _kind(declared: Schema) -> str:
    if "unit" in declared:
        what = (
            'a duration, in seconds or as `"1m30s"`'
            if declared["unit"] == "seconds"
            else 'a size, in bytes or as `"64KiB"`'
        )
        return f"Type: {what}"
    kinds: list[str] = []
    for part in [declared, *declared.get("anyOf", ())]:
        if "enum" in part:
            kinds.append(f"one of {', '.join(f'`{_toml(value)}`' for value in part['enum'])}")
        elif "const" in part:
            kinds.append(f"`{_toml(part['const'])}`")
        elif "$ref" in part:
            kinds.append("a table")
        elif part.get("pattern") != r"\$\{" and part.get("type") not in (None, "null"):
            kinds.append(_KINDS[part["type"]])
    return "Type: " + " or ".join(dict.fromkeys(kinds or ["a table"]))


_UNITS = {
    "seconds": 'a duration, in seconds or as `"1m30s"`',
    "bytes": 'a size, in bytes or as `"64KiB"`',
}
_KINDS = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a table",
}


def _of_number(declared: Schema, bound: str) -> float | None:
    found = [part[bound] for part in [declared, *declared.get("anyOf", ())] if bound in part]
    return found[0] if found else None


def _range(low: float | None, high: float | None, unit: str | None) -> str:
    write = {"seconds": format_duration, "bytes": format_size, None: lambda value: f"{value:g}"}[unit]
    if high is None:
        return f"{write(low)} or more"
    return f"up to {write(high)}" if low is None else f"{write(low)} to {write(high)}"


def _references(declared: Any) -> list[str]:
    """The definitions that a key's declaration refers to, in their order."""
    if isinstance(declared, list):
        return list(dict.fromkeys(name for each in declared for name in _references(each)))
    if not isinstance(declared, Mapping):
        return []
    own = [declared["$ref"].rpartition("/")[2]] if "$ref" in declared else []
    return list(dict.fromkeys([*own, *_references(list(declared.values()))]))


def _examples() -> dict[tuple[str, ...], Any]:
    """The first value of each key in the example files, by its path; entries of lists count as the list's."""
    found: dict[tuple[str, ...], Any] = {}

    def collect(value: Any, path: tuple[str, ...]) -> None:
        if path:
            found.setdefault(path, value)
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, (*path, key))
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, dict):
                    collect(each, path)

    for path in EXAMPLES:
        collect(tomllib.loads(path.read_text()), ())
    return found


def _in_table(head: str, path: tuple[str, ...], value: Any) -> str:
    *outer, key = path
    line = f"{key} = {_toml(value)}"
    for name in reversed(outer):
        line = f"{name} = {{ {line} }}"
    return f"```toml\n{head}\n{line}\n```"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}" if value else "{}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return tomlkit.item(value).as_string()


def _head(table: str, declared: Schema) -> str:
    return f"[[{table}]]" if declared.get("type") == "array" else f"[{table}]"


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]", "", name.lower())


def _markdown(text: str) -> str:
    """A sentence of a declaration, in which nothing is markup."""
    return re.sub(r"([*_<\[\]|])", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("\n", " ")
