"""The plan of a gateway from the configuration: the settings of its process, and its listeners with their contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from poolctl.address import parse
from poolctl.config import Tables, certificate_names, read_regular
from poolctl.control.pool_paths import GATEWAY_ACCESS_LOG
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.routing.route import StreamRoute

from ..engines import other_engine
from ..process.settings import HTTP, GatewaySettings, ListenerSettings
from ..table import GatewayConfig, StreamConfig


class Certificate(NamedTuple):
    """A certificate of a listener, as it was read: its settings, the contents of its files, and a digest of both.

    `names` are the host names in it; the first certificate of a listener is also used for all other hosts.
    """

    bind: str
    names: tuple[str, ...]
    settings: Table
    contents: tuple[bytes, ...]
    digest: str


class GatewayPlan(NamedTuple):
    """`listeners` by their keys; a stream's has its route in `streams`."""

    settings: GatewaySettings
    listeners: Mapping[str, ListenerSettings]
    streams: Mapping[str, StreamRoute]
    certificates: tuple[Certificate, ...]

    @property
    def certificate_names(self) -> dict[str, list[tuple[str, ...]]]:
        """The names in each certificate, in their order, by listeners."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for each in self.certificates:
            found.setdefault(each.bind, []).append(each.names)
        return found

    def keeping(self, there: Mapping[str, ListenerSettings]) -> GatewayPlan:
        """The plan that can be carried out with these open listeners.

        An address that is no longer planned stays until its replacement is open.
        """
        missing = {each.role: key for key, each in self.listeners.items() if key not in there}
        kept = {
            key: each for key, each in there.items() if key not in self.listeners and each.role in missing
        }
        streams = {key: self.streams[missing[each.role]] for key, each in kept.items() if each.alias}
        certificates = [
            certificate._replace(bind=key)
            for key, each in kept.items()
            for certificate in self.certificates
            if each.tls and certificate.bind == missing[each.role]
        ]
        return self._replace(
            listeners={**{key: each for key, each in self.listeners.items() if key in there}, **kept},
            streams={**self.streams, **streams},
            certificates=(*self.certificates, *certificates),
        )


def plan_of(
    tables: Tables,
    streams: Iterable[StreamRoute],
    directory: str,
    state_directory: str,
    env: Mapping[str, str],
    parts: dict[str, Table],
) -> GatewayPlan | None:
    """The plan of a pool with these settings of features' parts; None without a gateway.

    Blocks on the disk; raises ServerError for a certificate.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return None
    listeners = {}
    for each in gateway.bind:
        address = parse(each.bind)
        made = ListenerSettings(
            bind=address.key,
            protocol=HTTP,
            tls=bool(each.tls),
            dual=address.dual,
            accept_proxy=each.accept_proxy_protocol,
        )
        listeners[made.key] = made
    routes = {}
    dual = {address.key for each in tables.all(StreamConfig) if (address := parse(each.bind)).dual}
    for stream in streams:
        made = ListenerSettings(
            bind=stream.bind,
            protocol=stream.protocol,
            alias=stream.alias,
            dual=stream.bind in dual,
            accept_proxy=stream.accept_proxy,
        )
        listeners[made.key] = made
        routes[made.key] = stream
    return GatewayPlan(
        replace(settings_of(gateway, directory, state_directory), parts=parts),
        listeners,
        routes,
        tuple(_certificates(gateway, env)),
    )


def settings_of(gateway: Any, directory: str = "", state_directory: str = "") -> GatewaySettings:
    """The settings of [gateway] for all routes."""
    engine = other_engine(gateway.engine)
    return GatewaySettings(
        directory=directory,
        header_for_host=gateway.header_for_host,
        traffic_re_enable_seconds=gateway.traffic_re_enable,
        trusted_proxies=tuple(map(str, gateway.trusted_proxies)),
        drain_seconds=gateway.drain_timeout,
        head_seconds=gateway.head_timeout,
        keep_alive_seconds=gateway.keep_alive,
        max_head_bytes=gateway.max_head_size,
        max_connections=gateway.max_connections or 0,
        engine=gateway.engine,
        program=engine.path(gateway.program) if engine else "",
        http2=gateway.http2 is not False,
        access_log=os.path.join(state_directory, GATEWAY_ACCESS_LOG) if gateway.access_log else "",
    )


def _certificates(gateway: Any, env: Mapping[str, str]) -> Iterable[Certificate]:
    for listener in gateway.bind:
        if isinstance(listener.tls, bool):
            continue
        for tls in listener.tls:
            contents = []
            for path in filter(None, (tls.cert, tls.key or tls.cert, tls.ca)):
                try:
                    contents.append(read_regular(path))
                except OSError as error:
                    message = f"cannot read {path}: {error.strerror or error}"
                    raise ServerError(message, hint="check `tls` of [gateway]") from error
            settings: Table = {
                # Never None: OpenSSL would ask a terminal.
                "password": env.get(tls.password_env, "") if tls.password_env else "",
                "client_auth": tls.client_auth,
                "min_version": tls.min_version,
                "ciphers": tls.ciphers,
            }
            digest = hashlib.sha256(repr((settings, contents)).encode()).hexdigest()
            names = tuple(certificate_names(contents[0].decode("ascii", "replace")))
            yield Certificate(parse(listener.bind).key, names, settings, tuple(contents), digest)
