"""Builds a server's URL from its name, for pools in this process and for clients of running pools."""

from __future__ import annotations

from collections.abc import Sequence

from poolctl.errors import PoolParamError
from poolctl.selection.selector import similar_words

_MAX_SHOWN_NAMES = 5


def url_of_server(name: str, path: str, servers: Sequence[tuple[str, str | None]]) -> str:
    """The URL of the server with this name, followed by `path`; `servers` are pairs of name and client address.

    Raises PoolParamError if the server does not exist or has no address, or if `path` is given for a socket that is not
    a URL.
    """
    if not isinstance(path, str):
        raise PoolParamError(f"{path!r} is no path of a URL", hint='write url(NAME, "/path")')
    url = next((expose for server, expose in servers if server == name), None)
    if url is None and not any(server == name for server, _ in servers):
        raise unknown_server(name, [server for server, _ in servers])
    if not url:
        raise PoolParamError(
            f"{name!r} has no URL: it is a job or a program without a port", hint="give it a bind"
        )
    if path.strip("/") and "://" not in url:
        raise PoolParamError(f"{name!r} is reached at {url}, which is not a URL that a path can follow")
    return f"{url.rstrip('/')}/{path.lstrip('/')}" if path and "://" in url else url


def unknown_server(name: str, names: Sequence[str]) -> PoolParamError:
    """The error for a name that is not in `names`; it suggests similar names, or else lists the first few."""
    if isinstance(name, str) and (near := similar_words(name, names)):
        return PoolParamError(f"there is no server {name!r}; did you mean {' or '.join(map(repr, near))}?")
    more = len(names) - _MAX_SHOWN_NAMES
    shown = f"{', '.join(names[:_MAX_SHOWN_NAMES])}{f' and {more} more' if more > 0 else ''}"
    return PoolParamError(f"there is no server {name!r}; there are {shown or 'none'}")
