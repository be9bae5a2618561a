"""Makes the fast lane's table from the Typer application: `python -m poolctl.cli.tabulate > poolctl/cli/table.py`."""

from __future__ import annotations

import sys
from typing import Any

import typer

from poolctl.cli.app import FAST, build, perform_args
from poolctl.cli.options import COMMON
from poolctl.cli.outcome import Outcome
from poolctl.cli.request import Request

HEAD = '''"""Made by `python -m poolctl.cli.tabulate` from the Typer application; do not edit."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
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


def defaults(verb: str) -> dict[str, Any]:
    """What the slow lane makes of a command without any option."""
    requests: list[Request] = []

    def take(request: Request) -> Outcome:
        requests.append(request)
        return Outcome()

    perform_args([verb], take)
    return requests[0].values


def table() -> str:
    """The text of the module."""
    all_commands = commands()
    common = {s: v for s, v in spellings(all_commands["start"].params).items() if v[0] in COMMON}
    options = {
        verb: {s: v for s, v in spellings(all_commands[verb].params).items() if s not in common}
        for verb in FAST
    }
    parts = [HEAD, _dict("COMMON: dict[str, tuple[str, str]]", common)]
    parts += [_nested("OPTIONS: dict[str, dict[str, tuple[str, str]]]", options)]
    parts += [_nested("DEFAULTS: dict[str, dict[str, Any]]", {verb: defaults(verb) for verb in FAST})]
    return "\n".join(parts)


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
    return "\n".join([*lines, "}"]) + ("\n" if name.startswith("DEFAULTS") else "")


def _quoted(value: Any) -> str:
    return repr(value).replace("'", '"')


if __name__ == "__main__":
    sys.stdout.write(table())
