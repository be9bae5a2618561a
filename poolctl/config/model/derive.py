"""Keys that follow from others where a server's table leaves them out: address, expose, directories."""

from __future__ import annotations

from typing import Any

from poolctl.address import Address, AddressError, parse
from poolctl.config.model.problems import Finding, shown
from poolctl.config.model.rules import LONGEST_SOCKET_PATH_BYTES, RULED, app_findings, findings_of_rules

# In the place of an address that cannot be read, so that the model reports only its other keys.
NOWHERE = Address("job", name="?")
EXPOSE_SCHEMES = ("http://", "https://", "ws://", "wss://", "http+unix://", "unix://")


def derive(
    table: dict[str, Any], base_dir: str, findings: list[Finding], *, from_file: bool = False
) -> Address | None:
    """Add to a normalised table what follows from it; contradictions are findings.

    Returns the address, None where there is none to be read.
    """
    found = _address(table, base_dir)
    address = found if isinstance(found, Address) else None
    if isinstance(found, Finding):
        findings.append(found)
    table["address"] = address or NOWHERE
    table["bind"] = address.key if address else "?"
    table["base_dir"] = base_dir
    if from_file:
        table["from_file"] = True
    for key in ("cwd", "app_dir"):
        if key not in table:
            table[key] = base_dir
    if "app" in table:
        findings += app_findings(table["app"])
    if table.keys() & RULED:
        findings += findings_of_rules(table, address)
        scale = table.get("scale")
        if isinstance(scale, dict) and "max" not in scale and isinstance(scale.get("min"), int):
            table["scale"] = scale | {"max": max(scale["min"], 1)}
    problem = _expose(table, address)
    if problem is not None:
        findings.append(problem)
    return address


def _address(table: dict[str, Any], base_dir: str) -> Address | Finding | None:
    job, text = table.get("job") is True, table.get("bind")
    if text is None and "bind" not in table:
        if job:
            name = table.get("name")
            return Address("job", name=name) if isinstance(name, str) else None
        return Finding(("bind",), "'bind' is missing", 'add bind = "127.0.0.1:8080", or another address')
    if not isinstance(text, str):
        port = isinstance(text, int) and not isinstance(text, bool) and 0 < text < 65536
        fix = f'write bind = ":{text}"' if port else 'write bind = "127.0.0.1:8080"'
        return Finding(("bind",), f"{shown(text)} is not an address", fix, shown(text), "an address")
    if job:
        return Finding(("bind",), "a job has no address", "take out 'bind', or 'job'", shown(text))
    try:
        address = parse(text, base_dir=base_dir)
    except AddressError as problem:
        return Finding(("bind",), problem.message, problem.hint, shown(text), "an address")
    if address.kind == "job":
        return Finding(("bind",), f"{shown(text)} is not an address", "write job = true instead of 'bind'")
    if address.path and len(address.path.encode("utf-8", "surrogateescape")) > LONGEST_SOCKET_PATH_BYTES:
        limit = f"{LONGEST_SOCKET_PATH_BYTES} bytes"
        message = f"the path of the unix socket is longer than {limit}: {address.path}"
        return Finding(("bind",), message, "choose a shorter one: the system allows no more (unix(7))")
    return address


def _expose(table: dict[str, Any], address: Address | None) -> Finding | None:
    expose = table.get("expose")
    if expose is None:
        table["expose"] = exposed(address, bool(table.get("tls"))) if address else "?"
        table["derived_expose"] = True
        return None
    if not isinstance(expose, str):
        return None
    head, scheme, rest = expose.partition("://")
    message, fix = "", 'write "http://HOST:PORT"'
    if not expose or not expose.isprintable() or " " in expose or (scheme and not rest):
        message = f"{shown(expose)} is no address that clients could use"
    elif scheme and head.lower() + scheme not in EXPOSE_SCHEMES:
        message = f"{shown(expose)} has the scheme {head!r}"
    elif port := _impossible_port(expose):
        message, fix = f"port {port[:20]} of {shown(expose)} is not one", "ports are 1 to 65535"
    return Finding(("expose",), message, fix, shown(expose), "a URL") if message else None


def _impossible_port(expose: str) -> str:
    """A port that does not exist; "" for one that does, or for none, which is the scheme's."""
    scheme, _, rest = expose.rpartition("://")
    if "unix" in scheme.lower() or expose.lower().startswith(("unix:", "fd:")):
        return ""
    authority = rest.partition("/")[0].rpartition("@")[2]
    host, colon, port = authority.rpartition(":")
    if not colon or port == "auto" or (host.count(":") and not host.endswith("]")):
        return ""
    return "" if port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535 else port


def exposed(address: Address, tls: bool) -> str:
    """The address that clients use, as far as the bind address determines it.

    Wildcards become localhost; a unix or an inherited socket is shown as it is bound; a job has none; a port
    that is not chosen yet is `auto`.
    """
    if address.kind != "tcp":
        return "" if address.kind == "job" else address.key
    scheme = "https" if tls else "http"
    if address.is_wildcard:
        return f"{scheme}://localhost:{'auto' if address.port is None else address.port}"
    return f"{scheme}://{address.key}"
