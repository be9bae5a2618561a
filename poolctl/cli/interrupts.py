"""Ctrl-C: exit 130 at once while modules are imported, KeyboardInterrupt while a command runs.

This module is loaded before the rest of the command, so that Ctrl-C is handled during all other imports.
"""

from __future__ import annotations

import os
import sys
from signal import SIGINT, default_int_handler, getsignal, signal

from poolctl.exit_codes import INTERRUPTED

TYPE_CHECKING = False  # see main
if TYPE_CHECKING:
    from types import FrameType

_ctrl_c_raises = False  # otherwise Ctrl-C kills the process at once


def let_ctrl_c_exit() -> None:
    """From here on Ctrl-C exits at once."""
    global _ctrl_c_raises
    _ctrl_c_raises = False


def let_ctrl_c_raise() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
    global _ctrl_c_raises
    _ctrl_c_raises = True


def install_ctrl_c() -> None:
    """Install the handler for Ctrl-C, unless SIGINT is ignored (nohup, `&` without job control)."""
    if getsignal(SIGINT) is not default_int_handler:
        return
    signal(SIGINT, _handle_sigint)
    sys.unraisablehook = _exit_on_discarded_interrupt


def _handle_sigint(number: int, frame: FrameType | None) -> None:
    global _ctrl_c_raises
    if not _ctrl_c_raises or _is_importing(frame):
        os._exit(INTERRUPTED)
    _ctrl_c_raises = False  # a second Ctrl-C exits at once
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported. An exception from a signal handler could then break a C or Rust module."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _exit_on_discarded_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Exit on a KeyboardInterrupt raised where Python can only report it, such as in a weak reference's callback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)
