"""The process around an application: its arguments and import path, and the exit status when it calls sys.exit()."""

from __future__ import annotations

import sys

from .child import Spec


def set_app_environment(spec: Spec) -> None:
    """Set sys.argv and the import path for the application. Repeated after a preload, it changes nothing."""
    sys.argv = [spec["app"] or spec["server"]]
    if sys.path[0] != spec["app_dir"]:
        sys.path.insert(0, spec["app_dir"])


def exit_status(code: object) -> int:
    """What sys.exit(code) means (its documentation): an integer is the status, None is 0, a text is printed."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1
