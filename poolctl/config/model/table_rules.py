"""The rules between the keys of the tables besides the servers, and their paths made absolute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from poolctl.address import Address, parse
from poolctl.config.model.conflicts import conflicts
from poolctl.config.model.explain import validated
from poolctl.config.model.normalise import STEPS, absolute
from poolctl.config.model.problems import Finding, Path
from poolctl.config.model.table_models import MODELS, Dashboard, Notify, Table
from poolctl.config.model.tables import Tables

_PATHS = ("path", "token_file", "url_file", "ca")
_SOURCES = ("url", "url_env", "url_file")
_PLACES = {"metrics": ("metrics", "bind"), "dashboard": ("dashboard", "bind")}


def with_absolute_paths(name: str, table: dict[str, Any], base_dir: str) -> dict[str, Any]:
    """The table with its paths made absolute, from the directory of its file."""
    found = dict(table)
    for key, value in table.items():
        if key in _PATHS and not (name == "metrics" and key == "path"):
            found[key] = absolute(value, base_dir)
        elif key in ("bind", "tls"):
            found[key] = STEPS[key](value, base_dir)
    return found


def made(raw: Mapping[str, Any], findings: list[Finding]) -> Tables:
    """The valid tables of the merged files; problems of the others are added to the findings."""
    values: dict[str, Any] = {}
    for name, given in raw.items():
        if name != "notify":
            values[name] = _model(name, given, (name,), findings)
            continue
        receivers = [_model(name, each, (name, index), findings) for index, each in enumerate(given)]
        values[name] = tuple(each for each in receivers if each is not None)
        findings += _names_taken(receivers)
    return Tables(**values)


def _model(name: str, given: dict[str, Any], path: Path, findings: list[Finding]) -> Table | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(MODELS[name], table, own)
    # An address that is not accepted may still be a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if isinstance(found, Notify):
        own += _notify_findings(found)
    elif isinstance(found, Dashboard):
        own += _dashboard_findings(found)
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found


def _dashboard_findings(page: Dashboard) -> Iterator[Finding]:
    if page.token_env and page.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    if not (page.tls or page.insecure or _is_local(parse(page.bind))):
        message = f"{page.bind} can be reached from other machines, and without tls they send the token in the clear"
        yield Finding(("bind",), message, "add tls = { cert = …, key = … }, or bind 127.0.0.1 behind a proxy")
    if find_spec("starlette") is None:
        yield Finding((), "starlette is not installed, which serves the page", "pip install starlette")


def _is_local(address: Address) -> bool:
    """Whether only this machine can reach it."""
    if address.kind == "unix" or address.host == "localhost":
        return True
    try:
        return ip_address(address.host.strip("[]")).is_loopback
    except ValueError:
        return False


def _notify_findings(notify: Notify) -> Iterator[Finding]:
    given = [key for key in _SOURCES if getattr(notify, key) is not None]
    if notify.type == "command":
        if notify.command is None:
            yield Finding((), "a command is missing", 'add command = ["program", "argument"]')
        if given:
            yield Finding((given[0],), f"a command has no {given[0]}", "take it out, or choose another type")
        return
    if notify.command is not None:
        message = f"{notify.type} runs no command"
        yield Finding(("command",), message, 'take it out, or write type = "command"')
    if len(given) != 1:
        what = "is missing" if not given else f"is given {len(given)} times"
        hint = "write one of url, url_env and url_file"
        yield Finding((given[1],) if given else (), f"the address {what}", hint)
    if notify.token_env and notify.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    if notify.type == "gotify" and not (notify.token_env or notify.token_file):
        yield Finding((), "gotify asks for a token", "add token_env or token_file")
    if notify.type == "ntfy" and not notify.topic:
        yield Finding((), "ntfy sends to a topic", 'add topic = "…"')


def _names_taken(receivers: Iterable[Table | None]) -> Iterator[Finding]:
    labels: set[str] = set()
    for index, each in enumerate(receivers):
        if not isinstance(each, Notify):
            continue
        if each.label in labels:
            message = f"the name {each.label!r} is taken"
            yield Finding(("notify", index, *(("name",) if each.name else ())), message, 'add name = "…"')
        labels.add(each.label)


def overlapping(
    tables: Tables, servers: list[tuple[str, Address | None]]
) -> Iterator[tuple[tuple[str, str], str, Finding]]:
    """(the place of the table, the other server's or table's name, the finding) for each address that is taken."""
    own = [
        (f"[{name}]", parse(table.bind)) for name in _PLACES if (table := getattr(tables, name)) is not None
    ]
    if not own:
        return
    together = [*servers, *own]
    for second, first, finding in conflicts(together):
        name = together[second][0]
        if second >= len(servers):
            yield _PLACES[name.strip("[]")], together[first][0], finding
