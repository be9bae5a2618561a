"""The canonical forms of hosts, paths and targets of routes. The functions raise BadValue for invalid text."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from poolctl.address import Address, AddressError, canonical_ipv6, parse
from poolctl.config.values.plain import NAME_PATTERN, PORTS, BadValue, refuse_long_path
from poolctl.config.values.problems import shown
from poolctl.routing.normal_path import normal_path

TARGET_ALLOWED = (
    'a server\'s name, "tag:TAG", "http://HOST:PORT", "https://HOST:PORT", "unix:/PATH", or for HTTP/2 '
    '"h2c://HOST:PORT" or "https+h2://HOST:PORT"'
)
STREAM_TARGET_ALLOWED = 'a server\'s name, "tag:TAG" or "HOST:PORT"'
HOST_ALLOWED = '"users.example.com", "*.example.com", a first label such as "users", or "" for every host'
REDIRECT_ALLOWED = '"https", "https://HOST", "https://HOST/PATH" or "/PATH"'
PATH_ALLOWED = 'a path such as "/v1"'
TAG, UNIX = "tag:", "unix:"
_TARGET_PORTS = {**PORTS, "h2c": PORTS["http"], "https+h2": PORTS["https"]}
_label = re.compile(r"[a-z0-9_*](?:[a-z0-9_*-]{0,61}[a-z0-9_*])?")


def canonical_route_host(text: str) -> str:
    """Canonicalize a route's host: lower case, without a trailing dot; "" for every host."""
    host = text.strip().lower().removesuffix(".")
    if host in ("", "*"):
        return ""
    message = ""
    if "/" in host:
        message = f"{shown(text)} is not a host: leave out the scheme and the path"
    elif host.startswith("["):
        try:
            return f"[{canonical_ipv6(host[1:].removesuffix(']'))}]"
        except AddressError:
            message = f"{shown(text)} is not an IPv6 address"
    elif ":" in host:
        message = f"{shown(text)} has a port: a route is for every port that [gateway] binds"
    elif not host.isascii():
        message = f'{shown(text)} is not ASCII: write the form that is sent, "xn--…"'
    elif host.startswith("."):
        message = f'{shown(text)} begins with a dot: write "*{host[:60]}" for the names below it'
    elif len(host) > 253 or not all(map(_label.fullmatch, host.split("."))):
        message = f"{shown(text)} is not a host name"
    if message:
        raise BadValue(message, HOST_ALLOWED)
    return host


def canonical_route_path(text: str) -> str:
    """Canonicalize a route's path prefix: without a trailing slash, except "/" itself."""
    if not text.startswith("/"):
        raise BadValue(f"{shown(text)} does not begin with /", PATH_ALLOWED)
    if re.search(r"[\x00-\x20\x7f?#]", text):
        raise BadValue(f"{shown(text)} contains a blank, ? or #: a route has only a path", PATH_ALLOWED)
    path = text.rstrip("/") or "/"
    normal = normal_path(path)
    if normal is None:
        raise BadValue(
            f"{shown(text)} has escapes or characters that no request is served with", PATH_ALLOWED
        )
    if normal != path:
        raise BadValue(f"{shown(text)} is not in normal form: write {shown(normal)}", PATH_ALLOWED)
    return path


def _is_server_or_tag(text: str) -> bool:
    """Whether the text has the form of a server's name or tag:TAG; False for an address."""
    if text.startswith(TAG):
        if not re.fullmatch(r"[^\s,]+", text[len(TAG) :]):
            raise BadValue(f"{shown(text)} does not name a tag", '"tag:TAG"')
        return True
    return bool(re.fullmatch(NAME_PATTERN, text))


def canonical_target(text: str) -> str:
    """The target of a route in its canonical form: a server's name or tag:TAG as given, a URL with its port."""
    if _is_server_or_tag(text):
        return text
    if text.lower().startswith(UNIX):
        return _connectable_address(text, TARGET_ALLOWED).key
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        fix = f': write "http://{text[:60]}"' if re.fullmatch(r"[^/@\s]+:\d+", text) else ""
        raise BadValue(f"{shown(text)} is not a target{fix}", TARGET_ALLOWED)
    if scheme not in _TARGET_PORTS:
        raise BadValue(f"{shown(text)} has the scheme {scheme[:20]!r}", TARGET_ALLOWED)
    authority, _, path = rest.partition("/")
    if "@" in authority:
        message = (
            f"{scheme}://…@{authority.rpartition('@')[2][:60]} has credentials: write them into add_headers"
        )
        raise BadValue(message, TARGET_ALLOWED)
    if path or "?" in rest or "#" in rest:
        message = f"{shown(text)} has a path: a route keeps the client's path; strip_path removes its prefix"
        raise BadValue(message, TARGET_ALLOWED)
    bare = authority.rpartition("]")[2] if authority.startswith("[") else authority
    with_port = authority if ":" in bare else f"{authority}:{_TARGET_PORTS[scheme]}"
    return f"{scheme}://{_connectable_address(with_port, TARGET_ALLOWED).key}"


def canonical_redirect_target(text: str) -> str:
    """The target of a redirect in its canonical form: "https", or an absolute URL or a path as given."""
    if text.lower() == "https":
        return "https"
    if re.fullmatch(r"/(?![/\\])[!-~]*", text):  # browsers take // and /\ for the beginning of a host
        return text
    scheme, separator, rest = text.partition("://")
    host = re.split(r"[/?#]", rest)[0]
    if not separator or scheme.lower() not in PORTS or not host:
        raise BadValue(f"{shown(text)} is not a URL", REDIRECT_ALLOWED)
    if not re.fullmatch(r"[!-~]+", text) or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host):
        raise BadValue(f"{shown(text)} has invalid characters or credentials", REDIRECT_ALLOWED)
    try:
        port = urlsplit(text).port
    except ValueError:
        port = 0
    if port == 0:
        raise BadValue(f"{shown(text)} is not a URL", REDIRECT_ALLOWED)
    return text


def canonical_stream_target(text: str) -> str:
    """The target of a stream in its canonical form: a server's name or tag:TAG as given, or an address."""
    if _is_server_or_tag(text):
        return text
    scheme, separator, address = text.partition("://")
    if separator and scheme.lower() != "tcp":
        raise BadValue(f"{shown(text)} is a URL: a stream leads to HOST:PORT", STREAM_TARGET_ALLOWED)
    return _connectable_address(address if separator else text, STREAM_TARGET_ALLOWED).key


def _connectable_address(text: str, allowed: str) -> Address:
    try:
        address = parse(text)
    except AddressError as error:
        raise BadValue(error.message, allowed) from None
    refuse_long_path(address)
    if address.is_wildcard and text.startswith(":"):
        raise BadValue("the host is missing", allowed)
    if address.kind not in ("tcp", "unix") or address.auto or address.is_wildcard:
        raise BadValue(f"{shown(text)} is not an address to connect to", allowed)
    return address


def name_of_target(target: str) -> str:
    """A short name for the target: the server's name, the tag, or the address."""
    if "://" in target:
        return target.partition("://")[2]
    if target.startswith(UNIX):
        return target.rpartition("/")[2]
    return target.removeprefix(TAG)
