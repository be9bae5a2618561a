"""What becomes of a pool when its user logs out."""

from __future__ import annotations

import glob
import os
import pwd
import re
from collections.abc import Iterator

from .context import Case, read
from .finding import Finding, ok, warning

_FILES = (
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d/*.conf",
    "/run/systemd/logind.conf.d/*.conf",
)
_LINGER = "/var/lib/systemd/linger"


def logout(case: Case) -> Iterator[Finding]:
    """Whether logind ends it (logind.conf(5), KillUserProcesses)."""
    if not os.path.exists("/run/systemd/system"):
        yield ok("logout", "no logind would end the pool")
        return
    user = _user()
    if os.geteuid() == 0 or os.path.exists(f"{_LINGER}/{user}"):
        yield ok("logout", "the pool runs on")
        return
    said = [
        found[1].lower()
        for pattern in _FILES
        for path in sorted(glob.glob(pattern))
        for found in re.finditer(r"^\s*KillUserProcesses\s*=\s*(\w+)", read(path), re.MULTILINE)
    ]
    if said and said[-1] in ("yes", "1", "true", "on"):
        what = "logind ends the pool when its user logs out (KillUserProcesses)"
        yield warning("logout", what, f"loginctl enable-linger {user}, or poolctl export systemd")
    else:
        yield ok("logout", "the pool runs on")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


CHECKS = (logout,)
