"""The engines of the gateway, the programs that serve its clients: poolctl's own, and those that features declare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from poolctl.config.model.gateway_tables import GatewayConfig
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Finding
from poolctl.config.values.route_values import engine_names
from poolctl.feature import features

# Where programs are installed, in addition to $PATH.
_PLACES = ("/usr/sbin", "/usr/local/sbin")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Another program than poolctl's own that serves the gateway's clients, and proxies every connection."""

    label: str
    # The name of its executable, and how to install it.
    program: str
    install: str
    # The part of poolctl that follows the supervisor and runs the program.
    part: str
    # The keys that it does not support; each is found in a server's labels, or in a table of the file.
    problems: Callable[[Iterable[ServerKeys], Tables], Iterator[tuple[ServerKeys | None, Finding]]]

    def path(self, gateway: GatewayConfig) -> str:
        """The path of its executable, whether or not it is there."""
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES))
        return gateway.program or shutil.which(self.program, path=places) or f"{_PLACES[0]}/{self.program}"

    def unusable(self, path: str) -> tuple[str, str] | None:
        """Why the executable at this path cannot run, and the fix; None if it can."""
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return None
        message = f"{path} is not installed" if not os.path.exists(path) else f"{path} cannot be executed"
        return message, f'{self.install}, or write where it is: program = "/path/to/{self.program}"'


def other_engine(name: str) -> Engine | None:
    """The engine of this name; None for poolctl's own."""
    found = (feature.load(feature.engines[name]) for feature in features() if name in feature.engines)
    return next(found, None)


def problems_of_own_engine(gateway: GatewayConfig) -> Iterator[Finding]:
    """The keys of [gateway] that other engines support, and poolctl's own does not."""
    others = {name: engine for name in engine_names() if (engine := other_engine(name))}
    labels = " or ".join(each.label for each in others.values()) or "another engine"
    if gateway.program:
        fixes = [*(f'add engine = "{name}"' for name in others), "take it out"]
        message = f"program is the path of {labels}, which is not used"
        yield Finding(("gateway", "program"), message, ", or ".join(fixes))
    if gateway.http2:
        fixes = [
            *(f'{each.install} and add engine = "{name}"' for name, each in others.items()),
            "take it out",
        ]
        message = f"only {labels} serves HTTP/2 to clients of the gateway"
        yield Finding(("gateway", "http2"), message, ", or ".join(fixes))
