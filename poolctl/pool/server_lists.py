"""Converts lists of servers that programs give to a pool into valid configurations and problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from poolctl.config import (
    Configuration,
    Place,
    Problem,
    ServerConfig,
    TLSConfig,
    no_certificate,
    shown,
    with_addresses,
)
from poolctl.errors import PoolParamError, PoolValidateError, ServerError

from .server import with_port

Servers = Iterable[ServerConfig | Mapping[str, Any]]


def configurations(servers: Servers) -> tuple[list[ServerConfig], list[ServerError]]:
    """The configurations of a list, and the problems of its other members. Raises TypeError for a non-list."""
    made: list[ServerConfig] = []
    problems: list[ServerError] = []
    for index, server in enumerate(servers):
        if isinstance(server, ServerConfig):
            made.append(server)
        elif isinstance(server, Mapping):
            try:
                made.append(ServerConfig(**{str(key): value for key, value in server.items()}))
            except PoolValidateError as error:
                problems += error.exceptions
        else:
            message = f"{shown(server)} is neither a ServerConfig nor a mapping"
            hint = "write ServerConfig(name=…, bind=…)"
            problems.append(Problem(message, place=Place(key=f"[{index}]"), hint=hint))
    return made, problems


def configuration_of(servers: Servers, tls: TLSConfig | None) -> Configuration:
    """The list as a Configuration with this default TLS; a Configuration is returned unchanged.

    Raises PoolParamError.
    """
    if isinstance(servers, Configuration):
        return servers
    try:
        made, problems = configurations(servers)
    except TypeError as error:
        raise PoolParamError(f"{shown(servers)} is no list of servers", hint="give it a list") from error
    found = Configuration(made)
    found._problems, found._tls = problems, tls
    return found


def with_ports(
    configuration: Configuration, in_use: Mapping[str, ServerConfig]
) -> tuple[list[ServerConfig], list[ServerError]]:
    """The servers of a configuration with ports in place of `auto`, and the problems of all others.

    A server `in_use`, by its name, keeps its port.
    """
    port_range = "-".join(map(str, configuration.settings.port_range))
    problems: list[ServerError] = [*configuration._problems]
    servers: list[ServerConfig] = []
    for server in configuration:
        try:
            if server.tls is True and configuration._tls is None:
                raise configuration._located(server, no_certificate())
            servers.append(with_port(_kept(server, in_use), port_range))
        except ServerError as error:
            problems.append(error)
    return with_addresses(servers) if configuration.files else servers, problems


def _kept(server: ServerConfig, in_use: Mapping[str, ServerConfig]) -> ServerConfig:
    before = in_use.get(server.name)
    if before is None or not server.address.auto or before.address.host != server.address.host:
        return server
    return server.at(before.address)
