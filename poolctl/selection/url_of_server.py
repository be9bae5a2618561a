"""The URL of a server that is called by its name, for pools of this process and clients of running ones."""

from __future__ import annotations

from collections.abc import Sequence

from poolctl.errors import PoolParamError
from poolctl.selection.selector import similar_words

_SHOWN_NAMES = 5


def url_of_server(name: str, path: str, servers: Sequence[tuple[str, str | None]]) -> str:
    """The URL of the server with this name, followed by `path`; `servers` are names and addresses for clients.

    Raises PoolParamError if no server has the name, if the server has no address, and for a path below the address of
    a socket that is not a URL.
    """
    found = next((expose for each, expose in servers if each == name), None)
    if found is None and not any(each == name for each, _ in servers):
        names = [each for each, _ in servers]
        near = similar_words(name, names)
        meant = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {_listed(names)}"
        raise PoolParamError(f"there is no server {name!r}; {meant}")
    if not found:
        raise PoolParamError(
            f"{name!r} has no URL: it is a job or a program without a port", hint="give it a bind"
        )
    if path.strip("/") and "://" not in found:
        raise PoolParamError(f"{name!r} is reached at {found}, which is not a URL that a path can follow")
    return f"{found.rstrip('/')}/{path.lstrip('/')}" if path and "://" in found else found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return f"{', '.join(names[:_SHOWN_NAMES])}{f' and {more} more' if more > 0 else ''}" if names else "none"
