"""What a server's own table leaves out and its other keys tell: address, expose, directories."""

from __future__ import annotations

from typing import Any

from poolctl.address import Address, AddressError, parse
from poolctl.config.model.problems import Finding, shown
from poolctl.config.model.rules import LONGEST_SOCKET_PATH_BYTES, RULED, app_findings, findings_of_rules

# Stands where an address would, so that the model complains about the rest only.
NOWHERE = Address("job", name="?")
EXPOSE_SCHEMES = ("http://", "https://", "ws://", "wss://", "http+unix://", "unix://")


def derive(
    table: dict[str, Any], base_dir: str, findings: list[Finding], *, from_file: bool = False
) -> Address | None:
    """Add to a normalised table what follows from it; what does not go together is a finding.

    Hands back the address, None where there is none to be read.
    """
    address = _address(table, base_dir, findings)
    table["address"] = address or NOWHERE
    table["bind"] = address.key if address else "?"
    table["base_dir"] = base_dir
    if from_file:
        table["from_file"] = True
    if "cwd" not in table:
        table["cwd"] = base_dir
    if "app_dir" not in table:
        table["app_dir"] = base_dir
    if "app" in table:
        findings += app_findings(table["app"])
    if table.keys() & RULED:
        findings += findings_of_rules(table, address)
        scale = table.get("scale")
        if isinstance(scale, dict) and "max" not in scale and isinstance(scale.get("min"), int):
            table["scale"] = scale | {"max": max(scale["min"], 1)}
    _expose(table, address, findings)
    return address


def _address(table: dict[str, Any], base_dir: str, findings: list[Finding]) -> Address | None:
    job = table.get("job") is True
    if "bind" not in table:
        if job:
            name = table.get("name")
            return Address("job", name=name) if isinstance(name, str) else None
        findings.append(
            Finding(("bind",), "'bind' is missing", 'add bind = "127.0.0.1:8080", or another address')
        )
        return None
    text = table["bind"]
    if not isinstance(text, str):
        port = isinstance(text, int) and not isinstance(text, bool) and 0 < text < 65536
        fix = f'write bind = ":{text}"' if port else 'write bind = "127.0.0.1:8080"'
        findings.append(
            Finding(("bind",), f"{shown(text)} is not an address", fix, shown(text), "an address")
        )
        return None
    if job:
        findings.append(Finding(("bind",), "a job has no address", "take out 'bind', or 'job'", shown(text)))
        return None
    try:
        address = parse(text, base_dir=base_dir)
    except AddressError as problem:
        findings.append(Finding(("bind",), problem.message, problem.hint, shown(text), "an address"))
        return None
    if address.kind == "job":
        findings.append(
            Finding(("bind",), f"{shown(text)} is not an address", "write job = true instead of 'bind'")
        )
        return None
    if address.path and len(address.path.encode("utf-8", "surrogateescape")) > LONGEST_SOCKET_PATH_BYTES:
        message = (
            f"the path of the unix socket is longer than {LONGEST_SOCKET_PATH_BYTES} bytes: {address.path}"
        )
        findings.append(
            Finding(("bind",), message, "choose a shorter one: the system allows no more (unix(7))")
        )
        return None
    return address


def _expose(table: dict[str, Any], address: Address | None, findings: list[Finding]) -> None:
    expose = table.get("expose")
    if expose is None:
        table["expose"] = exposed(address, bool(table.get("tls"))) if address else "?"
        table["derived_expose"] = True
        return
    if not isinstance(expose, str):
        return
    head, scheme, rest = expose.partition("://")
    if not expose or not expose.isprintable() or " " in expose or (scheme and not rest):
        bad = "is no address that clients could use"
    elif scheme and head.lower() + scheme not in EXPOSE_SCHEMES:
        bad = f"has the scheme {head!r}"
    else:
        _exposed_port(expose, findings)
        return
    findings.append(
        Finding(("expose",), f"{shown(expose)} {bad}", 'write "http://HOST:PORT"', shown(expose), "a URL")
    )


def _exposed_port(expose: str, findings: list[Finding]) -> None:
    """Clients cannot use a port that does not exist; what has no port has its scheme's."""
    scheme, _, rest = expose.rpartition("://")
    if "unix" in scheme.lower() or expose.lower().startswith(("unix:", "fd:")):
        return
    authority = rest.partition("/")[0].rpartition("@")[2]
    host, colon, port = authority.rpartition(":")
    if not colon or (host.count(":") and not host.endswith("]")):
        return
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535) and port != "auto":
        message = f"port {port[:20]} of {shown(expose)} is not one"
        findings.append(Finding(("expose",), message, "ports are 1 to 65535", shown(expose), "a URL"))


def exposed(address: Address, tls: bool) -> str:
    """The address that clients use, as far as the bind address tells.

    Wildcards become localhost; a unix or an inherited socket is told as it is bound; a job has none; a port
    that is not chosen yet is `auto`.
    """
    if address.kind != "tcp":
        return "" if address.kind == "job" else address.key
    scheme = "https" if tls else "http"
    if address.is_wildcard:
        return f"{scheme}://localhost:{'auto' if address.port is None else address.port}"
    return f"{scheme}://{address.key}"
