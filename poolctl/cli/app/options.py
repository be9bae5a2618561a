"""The options that commands share, as Typer wants to hear them. Values stay text: requests judge them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from poolctl.cli.outcome import Outcome
from poolctl.cli.request import FORMATS, GOALS, HEALTH, STATES, Request
from poolctl.cli.top.board import SORTS

from .examples import epilog

HELP = {"help_option_names": ["-h", "--help"]}

Config = Annotated[
    list[str] | None,
    typer.Option("-c", "--config", metavar="FILE", help="The pool's file; repeatable, later ones override."),
]
PoolName = Annotated[
    str | None, typer.Option("--pool", metavar="NAME", help="A running pool, from anywhere.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FORM", help="table, wide, json, jsonl, name, or FIELD,FIELD…"),
]
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="Names or addresses; * and ? are wildcards. None: all servers.",
    ),
]
ByName = Annotated[
    list[str] | None, typer.Option("--name", metavar="RE", help="Name contains this expression.")
]
ByBind = Annotated[
    list[str] | None, typer.Option("--bind", metavar="RE", help="Address contains this expression.")
]
ByExpose = Annotated[
    list[str] | None, typer.Option("--expose", metavar="RE", help="Exposed address contains this expression.")
]
ByTag = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Has this tag.")]
ByState = Annotated[list[str] | None, typer.Option("--state", metavar="STATE", help="Is in this state.")]
ByHealth = Annotated[
    list[str] | None, typer.Option("--health", metavar="HEALTH", help="unknown, ok, warn or ko.")
]
Invert = Annotated[bool, typer.Option("--not", help="Select the others.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Options that match no server are no error.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="DURATION", help='Give up after this long: "30s".')
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]
NoDeps = Annotated[bool, typer.Option("--no-deps", help="Leave out what depends, or is depended on.")]
ByEnvironment = Annotated[
    bool, typer.Option("--env", help="Take this command's environment instead of the supervisor's.")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Accept expired certificates in place of valid ones."),
]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show secrets instead of masking them.")]
Watched = Annotated[
    bool, typer.Option("--watch", help="Go on, and reload whenever the file or the code changes.")
]

COMMON: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "pool": (PoolName, None),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
}
OUTPUT: dict[str, tuple[Any, Any]] = {"output": (Output, None)}
METRICS: dict[str, tuple[Any, Any]] = {
    "openmetrics": (Annotated[bool, typer.Option("--openmetrics", help="In the format OpenMetrics.")], False)
}
FILTERS: dict[str, tuple[Any, Any]] = {
    "name": (ByName, None),
    "bind": (ByBind, None),
    "expose": (ByExpose, None),
    "tag": (ByTag, None),
    "state": (ByState, None),
    "health": (ByHealth, None),
    "invert": (Invert, False),
    "allow_empty": (AllowEmpty, False),
}
ALL: dict[str, tuple[Any, Any]] = {
    "all": (Annotated[bool, typer.Option("--all", help="Every server of the pool.")], False)
}
SELECTION: dict[str, tuple[Any, Any]] = {"targets": (Targets, None), **FILTERS}
TIMES: dict[str, tuple[Any, Any]] = {"timeout": (Timeout, None)}
ORDERS: dict[str, tuple[Any, Any]] = {**TIMES, "no_wait": (NoWait, False), "no_deps": (NoDeps, False)}

# What completion offers after an option; "servers" and "tags" are asked of the pool in the working directory.
CHOICES: dict[str, tuple[str, ...]] = {
    "output": FORMATS,
    "state": STATES,
    "health": HEALTH,
    "goal": GOALS,
    "sort": tuple(SORTS),
}

Perform = Callable[[Request], Outcome]


def command(
    app: typer.Typer,
    verb: str,
    help: str,
    perform: Perform,
    /,
    *groups: dict[str, tuple[Any, Any]],
    **own: tuple[Any, Any],
) -> None:
    """Give `app` the command `verb`.

    Its options are those of the groups and its own, each a name with its annotation and its default; beside them
    it takes the common ones, which may stand before and after it. What followed `--` is its value `command`.
    """
    accepted = {**{k: v for group in groups for k, v in group.items()}, **own, **COMMON}
    lists = {key for key, (kind, _) in accepted.items() if "list[" in str(kind)}

    def run(ctx: typer.Context, **values: Any) -> Outcome:
        before: dict[str, Any] = ctx.obj or {}
        for key, value in values.items():
            if isinstance(before.get(key), list):
                values[key] = [*before[key], *(value or [])]
            elif before.get(key) and not value:
                values[key] = before[key]
        if "command" in before:
            values["command"] = before["command"]
        return perform(Request(verb, {k: (v or []) if k in lists else v for k, v in values.items()}))

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(key, keyword, default=default, annotation=kind)
        for key, (kind, default) in accepted.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(verb, help=help, epilog=epilog(verb), context_settings=HELP)(run)
