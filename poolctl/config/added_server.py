"""One server that is added to a pool: a table as a file has it, under the pool's own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from poolctl.config.checks.interpreter import default_interpreter
from poolctl.config.model.defaults import Defaults
from poolctl.config.model.derive import derive
from poolctl.config.model.explain import findings_of, suggest_afresh
from poolctl.config.model.interpolate import interpolate
from poolctl.config.model.normalise import normalise, refuse_internal
from poolctl.config.model.problems import Finding, untold
from poolctl.config.model.sections import refuse
from poolctl.config.server_config import ServerConfig


@dataclass(frozen=True)
class Surroundings:
    """What the files of a pool say to every server: [defaults], as read, and the handlers of [pool]."""

    defaults: dict[str, Any] = field(default_factory=dict)
    base_dir: str = ""
    handlers: str | None = None

    def server(self, table: Mapping[str, Any], base_dir: str, env: Mapping[str, str]) -> ServerConfig:
        """The server of this table, whose relative paths begin in `base_dir`.

        `env` is what `${VAR}` sees. Raises PoolValidateError with every problem.
        """
        suggest_afresh()
        findings: list[Finding] = []
        own = normalise(interpolate(dict(table), env, findings), base_dir, findings)
        refuse_internal(own, findings)
        under = Defaults(self.defaults, self.base_dir, ServerConfig)
        whole = under.under(own)
        derive(whole, base_dir, findings, from_file=True)
        if "command" not in whole:
            whole.setdefault("python", default_interpreter(base_dir, env))
            if "app" not in whole and self.handlers:
                whole["handlers"] = self.handlers
        server: ServerConfig | None = None
        try:
            server = ServerConfig.__pydantic_validator__.validate_python(whole)
        except ValidationError as error:
            findings += untold(findings_of(error, ServerConfig), findings)
        findings += [] if findings or server is None else unserved(server)
        if findings or server is None:
            name, bind = own.get("name"), own.get("bind")
            name = name if isinstance(name, str) else ""
            refuse(name[:60] or "the server", findings, name, bind if isinstance(bind, str) else "")
        return server


def unserved(server: ServerConfig) -> list[Finding]:
    """What a server of a file must have and this one has not: something to serve, and its certificate."""
    found: list[Finding] = []
    if server.app is None and not server.command and not server.handlers:
        hint = 'add app = "module:attribute", command = […], or [pool] handlers = "module:function"'
        found.append(Finding(("app",), "nothing to serve: neither 'app' nor 'command' nor handlers", hint))
    if server.tls is True:
        hint = "add [defaults.tls] with cert and key"
        found.append(Finding(("tls",), "tls = true, and there is no default certificate", hint))
    return found
