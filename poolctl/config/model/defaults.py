"""[defaults]: checked once, and given to the servers in a form that costs nothing to check again."""

from __future__ import annotations

from typing import Any

from poolctl.config.model.derive import derive
from poolctl.config.model.explain import validated
from poolctl.config.model.normalise import merged
from poolctl.config.model.problems import Finding
from poolctl.config.model.sections import Section
from poolctl.config.model.server_keys import ServerKeys

# An app of a server displaces a command of the defaults instead of contradicting it, and the other way round.
OF_AN_APP = frozenset({"app", "factory", "handler_key", "tls"})
OF_A_COMMAND = frozenset({"command", "notify", "job"})


class Defaults:
    """The keys that servers take over. `findings` are the problems of the table itself."""

    def __init__(self, table: dict[str, Any], base_dir: str, model: type[ServerKeys]) -> None:
        self.findings: list[Finding] = []
        self.tls = table.get("tls") if isinstance(table.get("tls"), dict) else None
        self.raw = {key: value for key, value in table.items() if key != "tls" or value is not self.tls}
        self.ready: dict[str, Any] = {}
        if not table:
            return
        bad = self._check(table, base_dir, model)
        for key in bad:
            # Reported here, and not again for each server.
            self.raw.pop(key, None)
        self.raw_tables = {key: value for key, value in self.raw.items() if isinstance(value, dict)}

    def _check(self, table: dict[str, Any], base_dir: str, server: type[ServerKeys]) -> set[Any]:
        findings: list[Finding] = []
        trial = {"app": "a:b", **table, "name": "defaults"}
        if "command" in trial:
            trial.pop("app")
        trial.setdefault("bind", "127.0.0.1:1")
        trial.pop("job", None)
        derive(trial, base_dir, findings)
        model = validated(server, trial, findings)
        self.findings = [finding for finding in findings if finding.path[0] in table]
        bad = {finding.path[0] for finding in self.findings}
        if model is not None:
            for key in self.raw.keys() - bad:
                value = getattr(model, str(key))
                self.ready[key] = value if isinstance(value, Section) else self.raw[key]
            if self.tls is not None and "tls" not in bad:
                self.ready["tls"] = model.tls
        else:
            self.ready = {key: value for key, value in self.raw.items() if key not in bad}
        if "tls" in bad:
            self.tls = None
        return bad

    def under(self, own: dict[str, Any]) -> dict[str, Any]:
        """A server's table with the defaults under it, in a new table."""
        if not self.ready and self.tls is None:
            return dict(own)
        table = {**self.ready, **own}
        if self.tls is not None:
            self._resolve_tls(table, own)
        for key in self.raw_tables.keys() & own.keys():
            if isinstance(own[key], dict):
                table[key] = merged(self.raw_tables[key], own[key])
        displaced = (
            OF_AN_APP if "command" in own else OF_A_COMMAND if own.keys() & OF_AN_APP - {"tls"} else ()
        )
        for key in displaced:
            if key not in own:
                table.pop(key, None)
        return table

    def _resolve_tls(self, table: dict[str, Any], own: dict[str, Any]) -> None:
        asked = own.get("tls", self.raw.get("tls"))
        if asked is True:
            table["tls"] = self.ready.get("tls", self.tls)
        elif isinstance(asked, dict) and self.tls is not None:
            # The key and its password belong to the certificate.
            under = self.tls
            if "cert" in asked:
                under = {k: v for k, v in under.items() if k not in ("cert", "key", "password_env")}
            table["tls"] = merged(under, asked)
        elif asked is None:
            table.pop("tls", None)
