"""Made by `python -m poolctl.cli.tabulate` from the Typer application; do not edit."""

from __future__ import annotations

# May stand before the command too.
COMMON: dict[str, tuple[str, str]] = {
    "-c": ("config", "list"),
    "--config": ("config", "list"),
    "--pool": ("pool", "value"),
    "-q": ("quiet", "flag"),
    "--quiet": ("quiet", "flag"),
    "-v": ("verbose", "flag"),
    "--verbose": ("verbose", "flag"),
}
# What all commands take that take targets: words that are no options.
WITH_TARGETS = (
    "list",
    "status",
    "wait",
    "start",
    "stop",
    "restart",
    "run",
    "walk",
    "show",
    "logs",
    "events",
    "top",
    "config",
    "scale",
    "drain",
    "undrain",
    "enable",
    "disable",
    "remove",
)
SHARED: dict[str, tuple[str, str]] = {
    "--name": ("name", "list"),
    "--bind": ("bind", "list"),
    "--expose": ("expose", "list"),
    "--tag": ("tag", "list"),
    "--state": ("state", "list"),
    "--health": ("health", "list"),
    "--not": ("invert", "flag"),
    "--allow-empty": ("allow_empty", "flag"),
    "-o": ("output", "value"),
    "--output": ("output", "value"),
}
# And each command besides.
OWN: dict[str, dict[str, tuple[str, str]]] = {
    "list": {
        "--field": ("field", "value"),
    },
    "status": {
        "--healthcheck": ("healthcheck", "flag"),
    },
    "wait": {
        "--timeout": ("timeout", "value"),
        "--for": ("goal", "value"),
    },
    "start": {
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--no-deps": ("no_deps", "flag"),
    },
    "stop": {
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--no-deps": ("no_deps", "flag"),
    },
    "restart": {
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--no-deps": ("no_deps", "flag"),
        "--env": ("env", "flag"),
        "--force": ("force", "flag"),
    },
    "run": {
        "--timeout": ("timeout", "value"),
        "--no-deps": ("no_deps", "flag"),
        "--watch": ("watch", "flag"),
        "--debug": ("debug", "flag"),
        "--log-format": ("log_format", "value"),
        "--stop-timeout": ("stop_timeout", "value"),
    },
    "walk": {
        "-j": ("jobs", "value"),
        "--jobs": ("jobs", "value"),
        "--fail-fast": ("fail_fast", "flag"),
    },
    "show": {
        "--reveal": ("reveal", "flag"),
    },
    "logs": {
        "-f": ("follow", "flag"),
        "--follow": ("follow", "flag"),
        "-n": ("lines", "value"),
        "--lines": ("lines", "value"),
        "--since": ("since", "value"),
        "--raw": ("raw", "flag"),
        "--reopen": ("reopen", "flag"),
    },
    "events": {
        "-f": ("follow", "flag"),
        "--follow": ("follow", "flag"),
        "-n": ("lines", "value"),
        "--lines": ("lines", "value"),
        "--since": ("since", "value"),
        "--kind": ("kind", "list"),
    },
    "top": {
        "-n": ("frames", "value"),
        "--frames": ("frames", "value"),
        "--once": ("once", "flag"),
        "--interval": ("interval", "value"),
        "--sort": ("sort", "value"),
    },
    "config": {
        "--reveal": ("reveal", "flag"),
    },
    "validate": {
        "-o": ("output", "value"),
        "--output": ("output", "value"),
        "--import": ("import_apps", "flag"),
        "--allow-empty": ("allow_empty", "flag"),
    },
    "reload": {
        "-o": ("output", "value"),
        "--output": ("output", "value"),
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--dry-run": ("dry_run", "flag"),
        "--watch": ("watch", "flag"),
        "--env": ("env", "flag"),
        "--force": ("force", "flag"),
    },
    "scale": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--save": ("save", "flag"),
        "--dry-run": ("dry_run", "flag"),
    },
    "drain": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--save": ("save", "flag"),
    },
    "undrain": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--save": ("save", "flag"),
    },
    "enable": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--save": ("save", "flag"),
        "--dry-run": ("dry_run", "flag"),
    },
    "disable": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--save": ("save", "flag"),
        "--dry-run": ("dry_run", "flag"),
    },
    "remove": {
        "--all": ("all", "flag"),
        "--timeout": ("timeout", "value"),
        "--no-wait": ("no_wait", "flag"),
        "--no-deps": ("no_deps", "flag"),
        "--save": ("save", "flag"),
        "--dry-run": ("dry_run", "flag"),
    },
}
# The user's own command follows after `--`.
WITH_COMMAND = ("run", "walk")
