"""What the model knows and this version does not do yet. Using it is a problem, never silently ignored.

A later version deletes lines here and nothing else.
"""

from __future__ import annotations

from poolctl.config.model.problems import Finding

VERSION_LACKS = "{what} is not available in this version of poolctl"
FILE_TABLES = {
    "gateway": "the gateway",
    "route": "the gateway's [[route]]",
    "stream": "the gateway's [[stream]]",
    "operator": "the gateway's [operator]",
    "proxmox": "the gateway's [proxmox]",
}


def lacking(path: tuple[str | int, ...], what: str) -> Finding:
    """The finding of something that comes later."""
    return Finding(path, VERSION_LACKS.format(what=what), "take it out, or install a version that has it")
