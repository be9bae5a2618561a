"""Makes the fast lane's table from the Typer application: `python -m poolctl.cli.tabulate > poolctl/cli/table.py`."""

from __future__ import annotations

import sys
from typing import Any

import typer

from poolctl.cli.app import FAST, WITH_COMMAND, build
from poolctl.cli.app.options import COMMON

HEAD = '''"""Made by `python -m poolctl.cli.tabulate` from the Typer application; do not edit."""

from __future__ import annotations
'''


def commands() -> dict[str, Any]:
    """The parser's commands by name, "" for the application itself."""
    application: Any = typer.main.get_command(build())
    return {"": application, **application.commands}


def spellings(parameters: list[Any]) -> dict[str, tuple[str, str]]:
    """Every spelling of the options: the value's name, and whether it is a flag, one value, or a list."""
    found = {}
    for parameter in parameters:
        for spelling in parameter.opts:
            if spelling.startswith("-") and parameter.name not in ("help", "version"):
                found[spelling] = (str(parameter.name), kind_of(parameter))
    return found


def kind_of(parameter: Any) -> str:
    """flag, value or list."""
    if getattr(parameter, "is_flag", False):
        return "flag"
    return "list" if getattr(parameter, "multiple", False) or parameter.nargs == -1 else "value"


def table() -> str:
    """The text of the module."""
    all_commands = commands()
    by_verb = {verb: spellings(all_commands[verb].params) for verb in FAST}
    common = {s: v for s, v in by_verb[FAST[0]].items() if v[0] in COMMON}
    targeted = tuple(verb for verb in FAST if _takes_targets(all_commands[verb]))
    shared = {
        s: v for s, v in by_verb[FAST[0]].items() if all(by_verb[verb].get(s) == v for verb in targeted)
    }
    own = {
        verb: {s: v for s, v in each.items() if s not in (shared if verb in targeted else common)}
        for verb, each in by_verb.items()
    }
    parts = [
        HEAD,
        "# May stand before the command too.",
        _dict("COMMON: dict[str, tuple[str, str]]", common),
        "# What all commands take that take targets: words that are no options.",
        "WITH_TARGETS = (\n" + "".join(f"    {_quoted(verb)},\n" for verb in targeted) + ")",
        _dict("SHARED: dict[str, tuple[str, str]]", {s: v for s, v in shared.items() if s not in common}),
        "# And each command besides.",
        _nested("OWN: dict[str, dict[str, tuple[str, str]]]", own),
        "# The user's own command follows after `--`.",
        f"WITH_COMMAND = {_quoted(tuple(verb for verb in FAST if verb in WITH_COMMAND))}",
    ]
    return "\n".join(parts) + "\n"


def _takes_targets(command: Any) -> bool:
    return any(parameter.name == "targets" for parameter in command.params)


def _dict(name: str, entries: dict[str, Any]) -> str:
    return f"{name} = {{\n" + "".join(f"    {_quoted(k)}: {_quoted(v)},\n" for k, v in entries.items()) + "}"


def _nested(name: str, entries: dict[str, dict[str, Any]]) -> str:
    lines = [f"{name} = {{"]
    for key, inner in entries.items():
        lines += [
            f'    "{key}": {{',
            *(f"        {_quoted(k)}: {_quoted(v)}," for k, v in inner.items()),
            "    },",
        ]
    return "\n".join([*lines, "}"]).replace("{\n    },", "{},")


def _quoted(value: Any) -> str:
    return repr(value).replace("'", '"')


if __name__ == "__main__":
    sys.stdout.write(table())
