"""The normal form of a request's path, and the other ways in which a backend may read it.

Rules about paths (which route, which server) are only as good as the agreement between gateway and backend on what a
path means. So the gateway compares paths in normal form: escaped unreserved characters are decoded, the escapes that
remain are in upper case, dot segments are removed (RFC 3986 §6.2.2). A request whose path is not in normal form is
forwarded in normal form, or refused; its connection is not passed to a worker, which would see the path as it was sent.

What RFC 3986 leaves apart, backends do not:

| in the path | some backends | here |
|---|---|---|
| `%2F`, `%5C` | decode them, and take them for separators (ASGI servers, IIS) | kept; read both ways |
| `//` | merge the slashes (nginx) | kept; read both ways |
| `;` | cut a segment's parameters off (Tomcat) | kept; read both ways |
| `/..;/`, `%2F..%2F` | see a dot segment after one of these | refused |
| `%00`, other controls, bytes beyond ASCII, a backslash | end the text there, or guess | refused |
| `%` without two hex digits, `#` | guess | refused |

Kept, because clients need them (`/@scope%2Fpackage`, `/fetch/https://example.com`), and read both ways: such a path has
several `readings`, and takes a route only if all of them take it. A second decoding ("%252F") is nowhere foreseen.
"""

from __future__ import annotations

import re
from itertools import product

# Almost every path; none of it can be read in another way.
_PLAIN = re.compile(r"(?:/(?![./])[A-Za-z0-9\-._~!$&'()*+,=:@]*)+")
_ALLOWED = re.compile(r"/(?:[!-\"$&->@-\[\]-~]|%(?!00|[01][0-9A-Fa-f]|7[Ff])[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_PARAMETERS = re.compile(r";[^/]*"), ""
_SEPARATORS = re.compile(r"%2F|%5C"), "/"
_SLASHES = re.compile(r"//+"), "/"
# A backend takes some of these steps, in this order: parameters are cut off before decoding, or after it.
_STEPS = _PARAMETERS, _SEPARATORS, _PARAMETERS, _SLASHES
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normal_path(path: str) -> str | None:
    """The path of a request, without its query, in normal form; None if it must be refused (400).

    It is already in normal form if the result equals what was given. An empty path is "/".
    """
    if _PLAIN.fullmatch(path):
        return path
    if not path:
        return "/"
    if not _ALLOWED.fullmatch(path):
        return None
    path = _without_dot_segments(_ESCAPE.sub(_decoded, path))
    for reading in readings(path):
        if _without_dot_segments(reading) != reading:
            return None
    return path


def readings(path: str) -> list[str]:
    """The ways in which backends may read a path that is in normal form; the first is the path itself."""
    if not ("//" in path or ";" in path or "%2F" in path or "%5C" in path):
        return [path]
    found = dict.fromkeys([path])
    for steps in product((False, True), repeat=len(_STEPS)):
        reading = path
        for taken, (expression, replacement) in zip(steps, _STEPS, strict=True):
            reading = expression.sub(replacement, reading) if taken else reading
        found[reading or "/"] = None
    return list(found)


def _decoded(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0].upper()


def _without_dot_segments(path: str) -> str:
    """RFC 3986 §5.2.4, for a path that begins with a slash."""
    if "/." not in path:
        return path
    kept: list[str] = []
    *directories, last = path.split("/")[1:]
    for segment in directories:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if last == "..":
        del kept[-1:]
    kept.append("" if last in (".", "..") else last)
    return "/" + "/".join(kept)
