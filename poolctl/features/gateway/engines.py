"""The gateway's engines, which serve its clients: poolctl's own engine, and external programs such as HAProxy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Finding
from poolctl.feature import features
from poolctl.installation import GATEWAY_LIBRARIES, install_extra_command

OWN_ENGINE = "poolctl"
# Where programs are installed, in addition to $PATH.
_PLACES = ("/usr/sbin", "/usr/local/sbin")


@dataclass(frozen=True, kw_only=True)
class ExternalEngine:
    """An external program, such as HAProxy, that serves the gateway's clients; it proxies every connection."""

    label: str
    # The name of its executable, and how to install it.
    program: str
    install: str
    # The part of poolctl that follows the supervisor and runs the program.
    part: str
    # Returns the given keys that it does not support: each with the server whose label it is, or with None for a table.
    problems: Callable[[Iterable[ServerKeys], Tables], Iterator[tuple[ServerKeys | None, Finding]]]

    def program_path(self, given: str | None) -> str:
        """The executable's path: `given` if set, else the installed one, else a default. The file may not exist."""
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES))
        return given or shutil.which(self.program, path=places) or f"{_PLACES[0]}/{self.program}"

    def problem(self, path: str) -> tuple[str, str] | None:
        """Why the executable at this path cannot run, and the fix; None if it can."""
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return None
        message = f"{path} is not installed" if not os.path.exists(path) else f"{path} cannot be executed"
        return message, f'{self.install}, or write where it is: program = "/path/to/{self.program}"'


def find_external_engine(name: str) -> ExternalEngine | None:
    """The engine with this name that a feature declares; None for poolctl's own engine and unknown names."""
    found = (feature.load(feature.engines[name]) for feature in features() if name in feature.engines)
    return next(found, None)


def engine_names() -> tuple[str, ...]:
    """Return the valid values of `engine` in [gateway]: poolctl's own engine, and engines that features declare."""
    return OWN_ENGINE, *(name for feature in features() for name in feature.engines)


def engine_problem(name: str, program: str) -> tuple[str, str] | None:
    """Why this engine cannot serve clients, and the fix; None if it can.

    `program` is the path of its executable; poolctl's own engine has none.
    """
    if engine := find_external_engine(name):
        return engine.problem(program)
    if name != OWN_ENGINE:
        return f"there is no engine {name!r}", f"choose one of {', '.join(engine_names())}"
    missing = [each for each in GATEWAY_LIBRARIES if find_spec(each) is None]
    if not missing:
        return None
    listed = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    are = "is" if len(missing) == 1 else "are"
    return f"{listed} {are} not installed, which the gateway needs", install_extra_command("gateway", missing)
