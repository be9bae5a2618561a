"""The tables of files besides servers become values, or findings: each key, and the rules between the keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING

from poolctl.address import Address, parse
from poolctl.config.model.pool_tables import GATEWAY_TABLES, MODELS, Dashboard, Notify, Tables
from poolctl.config.model.section import Table, validated
from poolctl.config.values.normalise import STEPS, absolute
from poolctl.config.values.plain import truth_from_environment
from poolctl.config.values.problems import Finding, Path, Tree

if TYPE_CHECKING:
    from poolctl.config.model.proxmox_table import ProxmoxTable

_PATHS = ("path", "token_file", "url_file", "ca")
_SOURCES = ("url", "url_env", "url_file")


def with_absolute_paths(name: str, table: dict[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with its paths made absolute, from the directory of its file."""
    if name in GATEWAY_TABLES:
        from poolctl.config.rules.gateway import with_absolute_addresses

        return with_absolute_addresses(table, base_dir)
    if name == "proxmox":
        return _with_absolute_files(table, base_dir)
    found = dict(table)
    for key, value in table.items():
        if key in _PATHS and not (name == "metrics" and key == "path"):
            found[key] = absolute(value, base_dir)
        elif key in ("bind", "tls"):
            found[key] = STEPS[key](value, base_dir)
        elif (name, key) == ("operator", "url"):
            found[key] = STEPS["bind"](value, base_dir)  # it may be a Unix socket
    return found


def made(raw: Mapping[str, Tree], findings: list[Finding]) -> Tables:
    """The valid tables of the merged files; problems of the others are added to the findings."""
    values: dict[str, Tree] = {}
    for name, given in raw.items():
        if name in MODELS and name != "notify":
            values[name] = _table(MODELS[name], given, (name,), findings)
    if "notify" in raw:
        values["notify"] = _receivers(raw["notify"], findings)
    if any(name in raw for name in GATEWAY_TABLES):
        from poolctl.config.rules.gateway import gateway_tables

        values |= gateway_tables(raw, findings)
    if "proxmox" in raw:
        values["proxmox"] = _proxmox(raw["proxmox"], findings)
    if "operator" in raw:
        has_gateway = any(name in raw for name in GATEWAY_TABLES)
        values["operator"] = _operator(raw["operator"], findings, has_gateway=has_gateway)
    if "registration" in raw:
        values["registration"] = _registration(raw["registration"], values, findings)
    return Tables(**values)


def _receivers(raw: list[dict[str, Tree]], findings: list[Finding]) -> tuple[Notify, ...]:
    labels: set[str] = set()
    found: list[Notify] = []
    for index, each in enumerate(raw):
        receiver = _table(Notify, each, ("notify", index), findings)
        if isinstance(receiver, Notify):
            found.append(receiver)
            if receiver.label in labels:
                path = ("notify", index, *(("name",) if receiver.name else ()))
                findings.append(Finding(path, f"the name {receiver.label!r} is taken", 'add name = "…"'))
            labels.add(receiver.label)
    return tuple(found)


def _table(kind: type[Table], given: dict[str, Tree], path: Path, findings: list[Finding]) -> Table | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(kind, table, own)
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


def _operator(raw: Mapping[str, Tree], findings: list[Finding], *, has_gateway: bool) -> Table | None:
    """The table [operator], None if there are problems of it, which are added to the findings."""
    from poolctl.config.model.operator_table import OperatorTable

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    own: list[Finding] = []
    table = validated(OperatorTable, given, own)
    # An address that is not accepted may still hold a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if table is not None:
        own += table.findings()
        if table.url and not has_gateway:
            message = "without a gateway there are no requests to inform an operator of"
            own.append(Finding(("url",), message, "add [gateway], or take url out"))
    findings += [each._replace(path=("operator", *each.path)) for each in own]
    return None if own else table


def _registration(
    raw: Mapping[str, Tree], values: Mapping[str, Tree], findings: list[Finding]
) -> Table | None:
    """The table [registration], None if there are problems of it, which are added to the findings."""
    from poolctl.config.model.registration_table import RegistrationTable

    own: list[Finding] = []
    table = validated(RegistrationTable, dict(raw), own)
    if table is not None:
        if "gateway" not in values:
            message = "without a gateway there are no routes to register for"
            own.append(Finding((), message, "add a [[route]] with register = true, or take the table out"))
        else:
            accepting = {route.label for route in values.get("routes") or () if route.register}
            own += table.findings(accepting)
    findings += [each._replace(path=("registration", *each.path)) for each in own]
    return None if own else table


def _with_absolute_files(table: dict[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with its paths made absolute, from the directory of its file."""
    return {
        key: absolute(value, base_dir)
        if key == "token_file" or (key == "verify" and isinstance(value, str) and not _is_truth(value))
        else value
        for key, value in table.items()
    }


def _is_truth(value: str) -> bool:
    return isinstance(truth_from_environment(value), bool)


def _proxmox(raw: Mapping[str, Tree], findings: list[Finding]) -> Table | None:
    """The table [proxmox], None if there are problems of it, which are added to the findings."""
    from poolctl.config.model.proxmox_table import ProxmoxTable

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    own: list[Finding] = []
    table = validated(ProxmoxTable, given, own)
    # An address that is not accepted may still hold a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if table is not None:
        own += _token_findings(table)
    findings += [each._replace(path=("proxmox", *each.path)) for each in own]
    return None if own else table


def _token_findings(table: ProxmoxTable) -> Iterator[Finding]:
    from poolctl.config.model.proxmox_table import TOKEN_ALLOWED

    if table.token_env and table.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    elif not (table.token_env or table.token_file):
        hint = f"add token_env or token_file; the token has the form {TOKEN_ALLOWED}"
        yield Finding((), "the API token is missing", hint)
