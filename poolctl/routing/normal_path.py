"""The normal form of a request's path, and the other ways in which a backend may interpret it.

If gateway and backend interpret a path differently, a client can evade rules about paths. So the gateway compares paths
in normal form: escaped unreserved characters are decoded, the escapes that remain are in upper case, dot segments are
removed (RFC 3986 §6.2.2). Backends get the path in this form. Paths without a safe interpretation are refused.

Backends confuse paths that RFC 3986 distinguishes ("read both ways": the gateway considers both interpretations):

| in the path | some backends | here |
|---|---|---|
| `%2F`, `%5C` | decode them, and take them for separators (ASGI servers, IIS) | kept; read both ways |
| `//` | merge the slashes (nginx) | kept; read both ways |
| `;` | cut a segment's parameters off (Tomcat) | kept; read both ways |
| `/..;/`, `%2F..%2F` | see a dot segment (`/../`) | refused |
| more than 256 places that are read both ways | | refused |
| `%00`, other controls, bytes beyond ASCII, a backslash | end the text there, or guess | refused |
| `%` without two hex digits, `#` | guess | refused |

Some of these paths are kept, because clients need them (`/@scope%2Fpackage`, `/fetch/https://example.com`). A path that
is read both ways has several `readings`, and matches a route only if all of them match it. Backends that decode twice
("%252F") are not considered.
"""

from __future__ import annotations

import re

# Matches nearly all paths. Servers agree on them unless a segment is empty or begins with a dot.
_PLAIN = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,=:@/]*+")
_ALLOWED = re.compile(r"/(?:[!-\"$&->@-\[\]-~]++|%(?!00|[01][0-9A-Fa-f]|7[Ff])[0-9A-Fa-f]{2})*")
# Dot segments that are visible only after separators are decoded or parameters stripped.
_HIDDEN_DOTS = re.compile(r"(?:/|%2F|%5C)\.\.?(?:/|%2F|%5C|;|\Z)")
_PARAMETERS = re.compile(r";[^/]*+")
_SEPARATOR = re.compile(r"%(?:2F|5C)")
_SLASHES = re.compile(r"//++")
_AMBIGUOUS = ";", "//", "%2F", "%5C"
# Paths with more ambiguous places are refused, because each place costs work in every reading.
MAX_AMBIGUOUS = 256
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX_DIGITS = "0123456789ABCDEFabcdef"
# The normal form of each escape, by its two digits.
_NORMAL_ESCAPES = {
    digits: character if character in _UNRESERVED else f"%{digits.upper()}"
    for digits, character in ((a + b, chr(int(a + b, 16))) for a in _HEX_DIGITS for b in _HEX_DIGITS)
}


def normal_path(path: str) -> str | None:
    """Return the path of a request, without its query, in normal form; None if it must be refused (400).

    The path is already in normal form if the result equals the argument. An empty path is "/".
    """
    if _PLAIN.fullmatch(path) and "//" not in path and "/." not in path:
        return path
    if not path:
        return "/"
    if not _ALLOWED.fullmatch(path):
        return None
    if "%" in path:
        first, *escapes = path.split("%")
        path = "".join([first, *[_NORMAL_ESCAPES[escape[:2]] + escape[2:] for escape in escapes]])
    normal = _without_dot_segments(path)
    if sum(map(normal.count, _AMBIGUOUS)) > MAX_AMBIGUOUS or _HIDDEN_DOTS.search(normal):
        return None
    return normal


def readings(path: str) -> list[str]:
    """The ways in which backends may interpret a path in normal form; the first is the path itself.

    Some backends remove path parameters, before or after they decode separators; some merge slashes.
    """
    if not any(map(path.__contains__, _AMBIGUOUS)):
        return [path]
    decoded, stripped = _SEPARATOR.sub("/", path), _PARAMETERS.sub("", path)
    variants = [path, decoded, stripped, _SEPARATOR.sub("/", stripped), _PARAMETERS.sub("", decoded)]
    variants += [_SLASHES.sub("/", variant) for variant in variants]
    return list(dict.fromkeys(variants))


def _without_dot_segments(path: str) -> str:
    """Remove dot segments (RFC 3986 §5.2.4) from a path that begins with a slash."""
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
